"""How large a table can be prepared, in which memory and time? Generates events, prepares them once.

    python benchmarks/prepare.py --rows 100e6 --users 2e6 --items 500e3 --memory 4GiB

Events come in the order of time, from users of unequal activity (log-normal) and with items of Zipf
popularity, ids as text (or integers, --ids integer), in one Parquet file (or --format csv). Preparation is a
5-core with a leave-one-out split in a process of its own. Prints one JSON line: rows, seconds of wall clock
and of processors, peak memory, room of scratch files, fingerprint, machine, versions.

peak_rss_mib is the process's own peak (VmHWM), which counts pages of files it has mapped;
peak_anonymous_mib leaves out what is page cache (largest of samples taken every 20 ms).
load_average is how many others wanted a processor when it began.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

PACKAGES = ("lexrec", "duckdb", "ibis-framework", "pyarrow", "numpy")
CHUNK = 1_000_000
START = 1_600_000_000
LETTERS = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", dtype=np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, default in (("rows", 1e6), ("users", 0), ("items", 0)):
        parser.add_argument(f"--{name}", type=lambda text: int(float(text)), default=int(default))
    parser.add_argument("--ids", choices=("string", "integer"), default="string")
    parser.add_argument("--format", choices=("parquet", "csv"), default="parquet")
    parser.add_argument("--k-core", type=int, default=5)
    parser.add_argument("--memory", default=None, help="as lexrec prepare --memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the events lie; kept, and used again if there")
    parser.add_argument("--in-memory", action="store_true", help="prepare once more, all in memory; compare")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args)))
        return
    args.users, args.items = args.users or args.rows // 50 + 1, args.items or args.rows // 200 + 1
    folder = args.folder or Path(tempfile.mkdtemp(prefix="lexrec-prepare-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        events = folder / f"events-{args.rows}-{args.users}-{args.items}-{args.ids}-{args.seed}.{args.format}"
        if not events.exists():
            generate(events, args)
        found = {name: getattr(args, name) for name in ("rows", "users", "items", "ids", "format", "k_core")}
        found |= {"memory": args.memory} | in_a_process(events, folder / "set")
        if args.in_memory:
            found["in_memory"] = in_a_process(events, "")
            found["is_same_in_memory"] = found["fingerprint"] == found["in_memory"]["fingerprint"]
        print(json.dumps(found))
    finally:
        shutil.rmtree(folder / "set", ignore_errors=True)
        if args.folder is None:
            shutil.rmtree(folder)


def in_a_process(events: Path, out: Path | str) -> dict[str, object]:
    """What `measure` says of a preparation in a fresh process; without a place to write to, all in memory."""
    command = [sys.executable, __file__, "--one", str(events), str(out), *sys.argv[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def generate(path: Path, args: argparse.Namespace) -> None:
    """Write events, a chunk at a time."""
    rng = np.random.default_rng(args.seed)
    user_share = np.cumsum(rng.lognormal(0.0, 1.0, args.users))
    item_share = np.cumsum(rng.permutation(1.0 / np.arange(1, args.items + 1)))
    user_ids, item_ids = (identifiers(n, args.ids, rng) for n in (args.users, args.items))
    partial = path.with_suffix(".partial")
    schema = pa.schema([("user_id", user_ids.type), ("item_id", item_ids.type), ("timestamp", pa.int64())])
    writer = pq.ParquetWriter if args.format == "parquet" else pa.csv.CSVWriter
    with writer(partial, schema) as file:
        for start in range(0, args.rows, CHUNK):
            n = min(CHUNK, args.rows - start)
            user_N, item_N = (
                np.searchsorted(share, rng.random(n) * share[-1]) for share in (user_share, item_share)
            )
            time_N = START + start // 10 + np.sort(rng.integers(0, CHUNK // 10, n))
            columns = [user_ids.take(pa.array(user_N)), item_ids.take(pa.array(item_N)), pa.array(time_N)]
            file.write_table(pa.table(columns, schema=schema))
    partial.rename(path)


def identifiers(n: int, kind: str, rng: np.random.Generator) -> pa.Array:
    """n distinct ids in no order: integers, or texts of ten letters and digits."""
    number_N = rng.permutation(n).astype(np.int64)
    if kind == "integer":
        return pa.array(number_N + 1_000_000)
    # Multiplication by an odd number shuffles 0 .. 2^48 without collision.
    rest_N = number_N.astype(np.uint64) * np.uint64(0x9E3779B97F4B) % np.uint64(2**48)
    letters = []
    for _ in range(10):
        letters.append(LETTERS[(rest_N % np.uint64(36)).astype(np.int64)])
        rest_N = rest_N // np.uint64(36)
    return pa.array(np.stack(letters, 1).reshape(-1).view("S10").astype(str))


def measure(events: str, out: str, args: argparse.Namespace) -> dict[str, object]:
    """Prepare in this process and say what it took."""
    import ibis

    from lexrec.data.prepare import Columns, Filters, Options, build, prepare

    filters = Filters(k_core=args.k_core)
    load = round(os.getloadavg()[0], 1)
    watch = Watch(Path(out).parent)
    began, cpu = time.monotonic(), time.process_time()
    if out:
        options = Options(filters, memory=args.memory, force=True)
        dataset = prepare(events, time="timestamp", out=out, options=options)
    else:
        options = Options(filters, engine=ibis.duckdb.connect(temp_directory=""))
        dataset = build(events, Columns("user_id", "item_id", "timestamp"), options=options)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    return {
        "events": len(dataset.item_N),
        "fingerprint": dataset.fingerprint,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        **watch.stop(),
        "load_average": load,
        "machine": {"cpus": os.cpu_count(), "cpu": cpu_name(), "system": platform.platform()},
        "versions": {name: version(name) for name in PACKAGES},
    }


class Watch:
    """Looks at this process's memory, and at the room that its scratch files take, from a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done = threading.Event()
        self._anonymous = self._scratch = 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, int]:
        """Peaks, in MiB."""
        self._done.set()
        self._thread.join()
        return {
            "peak_rss_mib": status("VmHWM") // 1024,
            "peak_anonymous_mib": self._anonymous // 1024,
            "peak_scratch_mib": self._scratch // 2**20,
        }

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self._anonymous = max(self._anonymous, status("RssAnon") + status("RssShmem"))
            scratch = self._folder.glob(".lexrec-*/**/*")
            self._scratch = max(self._scratch, sum(size(path) for path in scratch))


def status(name: str) -> int:
    """A figure of this process, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def size(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except OSError:
        return 0


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    main()
