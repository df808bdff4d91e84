"""What do 2 million pairs cost, in a data loader worker and while they are converted? (issue 7, benchmarks)

A pickled list of 2,086,036 rows over 475,000 photos and 32,259 scenes, as long as the released training split, is made
up and converted; then

*one worker* opens the table, and reads 20,000 pairs in random order; reported are its own memory above the imported
libraries (anonymous pages: what each further worker costs) and the table's pages that it has mapped (one copy for all
processes, and the system may drop it at any time);

*four workers* that were sent the table (spawn) do the same side by side: their own memory;

*Python rows*, what the original keeps per process: the list, unpickled by Python itself; own memory.

Prediction, written before the first run: 500 MB of pickle become 150 MB of arrays; a worker's own memory grows by
less than 5 MB; the Python rows take 4 GB; the conversion takes 4 minutes and 6 GB.

Happened (22 November 2026, two cores that seven other processes wanted as well, so wall times and pairs per second say
little; the JSON beside this file): 621 MB of pickle became 166 MB of arrays. A worker's own memory grew by 1.8 MB,
that of four side by side by 0.8 MB each; the table opens in 0.04 s. The Python rows take 4.07 GB, in every process that
holds them. The conversion took 193 s of processor time and 5.8 GB at its peak. A first version of this file counted
pages that no other process happened to have mapped as a worker's own, and reported 167 MB for the first one.

Run from the repository root: ``python -m benchmarks.pair_table``. Writes ``benchmarks/results/pair_table.json``.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import pickle
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "pair_table.json"
ROWS, PHOTOS, SCENES, READS = 2_086_036, 475_000, 32_259, 20_000
MB = 1e6
MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL")


def photo(number: int, rng: np.random.Generator) -> tuple[str, dict[str, Any]]:
    """A listed path and camera; the path as long as the released ones."""
    scene = number * SCENES // PHOTOS
    name = f"Church_of_Saint_Somebody_in_{scene:05d}"
    path = f"/share/phoenix/WikiSFM/data/main/images/{name}/commons/Exterior_of_{name}/0/pictures/IMG {number:07d}.jpg"
    q = rng.normal(size=4)
    pose = [*(q / np.linalg.norm(q)).tolist(), *rng.normal(0, 3, 3).tolist()]
    model = MODELS[number % 3]
    focal = [float(rng.uniform(900, 3000))] * (2 if model == "PINHOLE" else 1)
    last = [0.01] if model == "SIMPLE_RADIAL" else []
    return path, {"extrinsics": pose, "intrinsics": [model, 1600, 1200, *focal, 800.0, 600.0, *last]}


def write_list(file: Path, rows: int) -> None:
    """A pickled list; every row has dictionaries of its own, as rows that were made one by one have."""
    rng = np.random.default_rng(0)
    photos = [photo(number, rng) for number in range(max(PHOTOS * rows // ROWS, 10))]
    refs = rng.integers(0, len(photos) - 8, rows)
    made = []
    for ref, step, scale in zip(refs.tolist(), rng.integers(1, 8, rows).tolist(), rng.uniform(1, 9, rows), strict=True):
        (path1, camera1), (path2, camera2) = photos[ref], photos[ref + step]
        copies = [{name: list(values) for name, values in camera.items()} for camera in (camera1, camera2)]
        made.append([path1, path2, *copies, float(scale)])
    with open(file, "wb") as handle:
        pickle.dump(made, handle, protocol=4)


def memory() -> tuple[int, int]:
    """Bytes of this process that no other can share (anonymous pages), and those of mapped files. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    return values["RssAnon"], values["RssFile"]


def read_some(table: Any) -> dict[str, float]:
    """Read pairs in random order, as a worker does; what it cost."""
    rng = np.random.default_rng(os.getpid())
    (own, mapped), started = memory(), time.perf_counter()
    for index in rng.integers(0, len(table), READS).tolist():
        pair = table[index]
        assert pair.ref_path
        assert pair.ref_w2c[3, 3] == 1.0
    seconds = time.perf_counter() - started
    own_after, mapped_after = memory()
    return {
        "own MB": (own_after - own) / MB,
        "mapped MB": (mapped_after - mapped) / MB,
        "pairs per second": READS / seconds,
    }


def case_worker(folder: str) -> dict[str, float]:
    """One worker, opening included."""
    from dataparsers.megascenes_table import PairTable

    own, mapped = memory()
    started = time.perf_counter()
    table = PairTable.open(folder)
    opened = time.perf_counter() - started
    read = read_some(table)
    own_after, mapped_after = memory()
    return {**read, "own MB": (own_after - own) / MB, "mapped MB": (mapped_after - mapped) / MB, "open s": opened}


def case_four(folder: str) -> list[dict[str, float]]:
    """Four workers side by side; each is sent the table."""
    from dataparsers.megascenes_table import PairTable

    with multiprocessing.get_context("spawn").Pool(4) as pool:
        return pool.map(read_some, [PairTable.open(folder)] * 4, chunksize=1)


def case_convert(file: str) -> dict[str, float]:
    """The conversion, done once."""
    from dataparsers.megascenes_splits import convert_splits

    started, before = time.perf_counter(), time.process_time()
    (converted,) = convert_splits([file], Path(file).parent / "data")
    size = sum(each.stat().st_size for each in converted.table.folder.iterdir())
    return {
        "seconds": time.perf_counter() - started,
        "processor seconds": time.process_time() - before,
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB,
        "table MB": size / MB,
        "list MB": Path(file).stat().st_size / MB,
        "pairs": len(converted.table),
        "photos": converted.table.path_count,
    }


def case_python(file: str) -> dict[str, float]:
    """What the original holds in every process. The list is our own, made above."""
    before = memory()[0]
    with open(file, "rb") as handle:
        rows = pickle.load(handle)
    return {"own MB": (memory()[0] - before) / MB, "pairs": len(rows)}


def in_process(case: str, argument: Path) -> Any:
    """Run a case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.pair_table", case, str(argument)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """All cases; a number of rows may be named."""
    if len(sys.argv) == 3:
        print(json.dumps(globals()[f"case_{sys.argv[1]}"](sys.argv[2])))
        return
    rows = int(sys.argv[1]) if len(sys.argv) == 2 else ROWS
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "trainsplit.pkl"
        maker = multiprocessing.get_context("spawn").Process(target=write_list, args=(file, rows))
        maker.start()
        maker.join()
        result: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "rows": rows,
            "convert": in_process("convert", file),
            "worker": in_process("worker", file.parent / "data/train"),
            "four workers": in_process("four", file.parent / "data/train"),
            "python rows": in_process("python", file),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if rows == ROWS:
        RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
