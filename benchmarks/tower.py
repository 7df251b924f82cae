"""psi(X) in NumPy beside the same tower in Keras: one user, and 10,000 users in a batch.

python -m benchmarks.tower
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from embedstore.data.features import Bags
from embedstore.runs.tower import AdditiveTower, DenseTower, TowerInput, TowerLayer, UserTower

N_MOVIES, N_USERS, HISTORY = 3_706, 10_000, 100


def main() -> None:
    import keras

    rng = np.random.default_rng(0)
    table = rng.normal(size=(N_MOVIES, 64)).astype(np.float32)
    kernel = rng.normal(size=(64, 64)).astype(np.float32)
    towers: dict[str, UserTower] = {
        "additive, 64 dims": AdditiveTower(table),
        "dense, 64 -> 64 tanh": DenseTower([TowerInput("movies", table)], [TowerLayer(kernel, None, "tanh")]),
    }
    histories = rng.integers(0, N_MOVIES, size=(N_USERS, HISTORY))
    bags = Bags.of(histories)
    print("tower                 one user (us)  10,000 users (s)  model.predict (s)  ratio  difference")
    for name, tower in towers.items():
        ids = keras.Input((None,), dtype="int64")
        x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(N_MOVIES, 64, weights=[table])(ids))
        if isinstance(tower, DenseTower):
            layer = keras.layers.Dense(64, use_bias=False, activation="tanh")
            x = layer(x)
            layer.set_weights([kernel])
        model = keras.Model(ids, x)
        model.predict(histories[:100], verbose=0)
        one = min(_seconds(lambda tower=tower: [tower(histories[7]) for _ in range(1000)], 5)) * 1e3  # type: ignore[misc]
        batch = statistics.median(_seconds(lambda tower=tower: tower.batch(bags), 5))  # type: ignore[misc]
        keras_time = statistics.median(_seconds(lambda model=model: model.predict(histories, verbose=0), 3))  # type: ignore[misc]
        difference = np.abs(tower.batch(bags) - model.predict(histories, verbose=0)).max()
        print(
            f"{name:<21} {one:>13.1f}  {batch:>16.3f}  {keras_time:>17.2f}  {keras_time / batch:>4.0f}x  "
            f"{difference:.1e}"
        )


def _seconds(work: Callable[[], object], times: int) -> list[float]:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return taken


if __name__ == "__main__":
    main()
