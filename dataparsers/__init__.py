"""Readers and writers: files on disk to cameras, image paths, meshes and masks; knows no method."""
