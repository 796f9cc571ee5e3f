#!/usr/bin/env python3
"""What a save and a restore cost as the state grows, in bytes and in tensors; a line fitted, its slope printed.

    python3 benches/growth.py --ours target/release/bench --dir DIR [--max-bytes 10e9] [--max-tensors 1000000]

Bytes grow in 512 tensors; tensors grow at 64 bytes each. Medians of --reps runs; the line is fitted to the relative error,
so that small states count as much as large ones.
"""
import argparse, json, statistics, subprocess

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("--ours", required=True)
p.add_argument("--dir", required=True)
p.add_argument("--max-bytes", type=float, default=10e9)
p.add_argument("--max-tensors", type=float, default=1e6)
p.add_argument("--reps", type=int, default=3)
p.add_argument("--measures", default="save,save_durable,restore_warm")
a = p.parse_args()


def run(measure, tensors, each):
    command = [a.ours, "--measure", measure, "--size", f"{tensors}x{each}", "--dir", a.dir]
    seen = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(a.reps)]
    return statistics.median(r["seconds"] for r in seen), max(r["rss_extra"] for r in seen)


def fit(points):
    """t = a + b x with the least squared relative error."""
    w = [1 / t**2 for _, t in points]
    s = lambda f: sum(wi * f(x, t) for wi, (x, t) in zip(w, points))
    n, x, t, xx, xt = s(lambda x, t: 1), s(lambda x, t: x), s(lambda x, t: t), s(lambda x, t: x * x), s(lambda x, t: x * t)
    slope = (n * xt - x * t) / (n * xx - x * x)
    return (t - slope * x) / n, slope


def grow(title, sizes, unit, per, scale):
    print(f"\n{title}\n")
    for measure in a.measures.split(","):
        points = []
        for x, (tensors, each) in sizes:
            seconds, memory = run(measure, tensors, each)
            points.append((x, seconds))
            print(f"  {measure:14} {x:>14,.0f} {unit:8} {1e3 * seconds:10.2f} ms   memory above the state {memory / 2**20:7.1f} MiB", flush=True)
        start, slope = fit(points)
        print(f"  {measure:14} = {1e3 * start:.2f} ms + {slope * scale:.3f} {per}\n", flush=True)


steps = lambda first, last: [n for n in (first * 10**i for i in range(12)) if n <= last]
grow("Bytes, in 512 tensors", [(512 * (n // 2048 * 4), (512, n // 2048 * 4)) for n in steps(10**6, a.max_bytes)], "bytes", "ms a MB", 1e9)
grow("Tensors of 64 bytes", [(n, (n, 64)) for n in steps(10, a.max_tensors)], "tensors", "us a tensor", 1e6)
