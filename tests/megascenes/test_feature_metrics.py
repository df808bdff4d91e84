"""FID and KID against their textbook forms (spec megascenes 7)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from megascenes_ns import feature_metrics
from megascenes_ns.feature_metrics import Inception, fid, inception_problem, kid


def sets(n: int, m: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(n + m)
    mix = random.normal(size=(d, d))
    return random.normal(size=(n, d)) @ mix, random.normal(size=(m, d)) @ mix * 1.3 + 0.4


@pytest.mark.parametrize(("n", "m"), [(50, 60), (9, 60), (7, 5)])
def test_fid_is_the_formula_with_a_matrix_root(n, m):
    first, second = sets(n, m, 8)
    s1, s2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    shift = first.mean(0) - second.mean(0)
    # A hair on the diagonal: scipy's root dislikes singular matrices.
    root = np.real(np.asarray(sqrtm((s1 + 1e-12 * np.eye(8)) @ (s2 + 1e-12 * np.eye(8)))))
    expected = shift @ shift + np.trace(s1) + np.trace(s2) - 2 * np.trace(root)
    assert fid(first, second) == pytest.approx(expected, rel=2e-4)


def test_fid_of_a_set_with_itself_is_nothing_and_of_a_shift_its_square():
    first, _ = sets(40, 40, 6)
    assert fid(first, first) == pytest.approx(0.0, abs=1e-9)
    assert fid(first, first + 2.0) == pytest.approx(4.0 * 6, rel=1e-9)


def test_kid_is_the_double_sum():
    first, second = sets(7, 9, 4)

    def kernel(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    within_x = np.mean([kernel(a, b) for i, a in enumerate(first) for j, b in enumerate(first) if i != j])
    within_y = np.mean([kernel(a, b) for i, a in enumerate(second) for j, b in enumerate(second) if i != j])
    both = np.mean([kernel(a, b) for a in first for b in second])
    assert kid(first, second) == pytest.approx(within_x + within_y - 2 * both, rel=1e-9)


def test_large_sets_are_estimated_from_the_same_subsets_every_time(monkeypatch):
    monkeypatch.setattr(feature_metrics, "KID_SUBSET", 20)
    monkeypatch.setattr(feature_metrics, "KID_SUBSETS", 30)
    first, second = sets(60, 70, 4)
    whole = feature_metrics._discrepancy(first, second)
    assert kid(first, second, seed=1) == kid(first, second, seed=1) != kid(first, second, seed=2)
    assert kid(first, second) == pytest.approx(whole, rel=0.5)


@pytest.mark.parametrize("metric", [fid, kid])
def test_one_picture_is_no_set(metric):
    with pytest.raises(ValueError, match="needs 2 pictures"):
        metric(np.zeros((1, 3)), np.zeros((5, 3)))


def test_absent_or_foreign_weights_are_said_and_never_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "are not in" in str(inception_problem())
    with pytest.raises(RuntimeError, match="are not in"):
        Inception()
    file = tmp_path / "checkpoints" / feature_metrics.FILE
    file.parent.mkdir()
    file.write_bytes(b"something else")
    assert "is not the published file" in str(inception_problem())
