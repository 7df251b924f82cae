"""A run whose movie vectors are scaled by norm(V_j)^-A, 0 < A <= 1, so that fewer popular movies are shown.

Long vectors win dot products, and popular movies have them; A = 1 leaves the direction alone. psi, payload
and run id stay, so that a score is psi(X) . V_j of the scaled V_j. Where psi has a constant dimension, V_j
has an item bias there: it counts in the norm and is scaled like the others.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedstore.errors import UsageError
from embedstore.runs.run import Run

__all__ = [
    "DebiasedRun",
    "checked_amount",
    "debiased",
    "norms_of",
    "refuse_debiased",
    "scale_of",
    "split_reference",
]

_REFERENCE = re.compile(r"(?P<run>.+)_debias(?P<amount>\d+(?:\.\d+)?)")
_BLOCK = 1 << 14  # rows scaled at a time
_VECTORS = "movie_vectors.npy"


class DebiasedRun(Run):
    """A view of run: all of it is run's, but for movie_vectors, reference and fingerprint."""

    def __init__(self, run: Run, amount: float) -> None:
        super().__init__(run.path, replace(run.manifest, config={**run.manifest.config, "debias": amount}))
        self._plain, self._amount = run, amount

    def moved(self, path: Path) -> Run:
        """See Run.moved."""
        return DebiasedRun(self._plain.moved(path), self._amount)

    @cached_property
    def movie_vectors(self) -> npt.NDArray[np.float32]:
        """V_j, scaled, shape (n_movies, embedding_dim), float32, mapped from a temporary file."""
        return self._scaled[0]

    @cached_property
    def fingerprint(self) -> str:
        """The digest of all that goes into a collection, see Run.fingerprint."""
        _ = self._plain.fingerprint  # checks the files
        files = {**self.manifest.files, _VECTORS: {"sha256": self._scaled[1]}}
        return replace(self.manifest, files=files).fingerprint

    def release(self) -> None:
        """See Run.release."""
        self._plain.release()
        super().release()

    @cached_property
    def _scaled(self) -> tuple[npt.NDArray[np.float32], str]:
        """The scaled vectors, and the sha256 of the .npy file that holds them."""
        vectors = self._plain.movie_vectors
        with tempfile.TemporaryFile() as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": vectors.shape}
            np.lib.format.write_array_header_1_0(file, header)
            start = file.tell()
            for first in range(0, len(vectors), _BLOCK):
                block = vectors[first : first + _BLOCK]
                scaled = block * scale_of(norms_of(block), self.manifest.debias)[:, None]
                file.write(scaled.tobytes())
                self._plain.release()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            mapped = np.memmap(file, np.float32, "r", start, vectors.shape)
        return mapped.view(np.ndarray), digest


def debiased(run: Run, amount: float) -> Run:
    """Return run with its movie vectors scaled by norm^-amount.

    Raises UsageError where amount is not one (see checked_amount), or run is debiased already.
    """
    refuse_debiased(run)
    return DebiasedRun(run, checked_amount(amount))


def refuse_debiased(run: Run) -> None:
    """Raise UsageError where the vectors of run are scaled already."""
    if run.manifest.debias is not None:
        raise UsageError(f"run {run.reference} is debiased already; give the run {run.run_id} itself")


def checked_amount(amount: float) -> float:
    """Return amount. Raises UsageError unless it is in (0, 1] with two decimals, which name a collection."""
    if not 0 < amount <= 1 or round(amount, 2) != amount:
        raise UsageError(
            f"debias is {amount:g}; expected more than 0 and at most 1, with two decimals, as in 0.25"
        )
    return float(amount)


def split_reference(reference: str) -> tuple[str, float | None]:
    """Return the reference of a run and the amount that it is to be debiased by; see reference_of."""
    match = _REFERENCE.fullmatch(reference)
    return (match["run"], float(match["amount"])) if match else (reference, None)


def norms_of(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the Euclidean norm of every row."""
    norms: npt.NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    return norms


def scale_of(norms: npt.NDArray[np.float64], amount: float | None) -> npt.NDArray[np.float32]:
    """Return norms^-amount, 1 where amount is None or a vector is zero, or next to it (below 1.2e-38)."""
    some = norms > np.finfo(np.float32).tiny
    powers = np.power(norms, -(amount or 0.0), where=some, out=np.ones_like(norms))
    return powers.astype(np.float32)
