"""What the five methods share; knows no method."""
