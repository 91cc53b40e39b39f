"""The report of the search benchmark, from the results in the work folder."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from peers import version_of
from report import describe_machine, describe_revision, describe_run, spread, table
from search_parts import exponent

Record = dict[str, Any]
PACKAGES = ("nestling", "numpy", "numba")
GROUPS: dict[str, Callable[[str, Record], bool]] = {
    "engines": lambda name, peer: not _is_by_hand(name),
    "open engines": lambda name, peer: peer["is_open"] and not _is_by_hand(name),
    "engines, and funnels made of them by hand": lambda name, peer: True,
    "the same of open engines": lambda name, peer: peer["is_open"],
}
"""Whom our plans are held against."""
SHORTFALL = 5e-4
"""How far below the target an engine may be to count as there; it is told to three digits."""
MODES = {"single_s": "single", "batch_s": "batch", "two_threads_s": "2 threads"}


def save(work: Path, set_name: str, part: str, record: Any, *, loads: tuple[float, float]) -> None:
    path = work / "results" / f"{set_name}-{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"loads": loads, "record": record}, indent=1))


def load(work: Path, set_name: str, part: str) -> Any:
    """Return what was saved, or None."""
    path = work / "results" / f"{set_name}-{part}.json"
    return json.loads(path.read_text())["record"] if path.exists() else None


def make_report(work: Path, set_names: Sequence[str], command: str) -> str:
    machine = describe_machine()[0]
    saved = [json.loads(path.read_text()) for path in (work / "results").glob("*.json")]
    loads = [record["loads"] for record in saved] or [(0.0, 0.0)]
    lines = [
        "# Tiered search against other engines",
        "",
        describe_run(
            machine,
            num_threads=2,
            packages=[name for name in PACKAGES if version_of(name)],
            loads=(max(pair[0] for pair in loads), max(pair[1] for pair in loads)),
            revision=describe_revision(),
        )
        + " (The loads are the highest of all parts; our own process makes up to 2.)",
        "",
        f"`{command}`",
    ]
    for name in set_names:
        for part, write in PARTS.items():
            record = load(work, name, part)
            if record:
                lines += ["", *write(name, record)]
    return "\n".join(lines) + "\n"


# --- Parts ---------------------------------------------------------------------------------------


def write_compare(name: str, record: Record) -> list[str]:
    """All engines at one quality, the fastest first, and how ours stands."""
    rows, width = record["shape"]
    peers = dict(sorted(record["peers"].items(), key=lambda item: middle(item[1], "single_s")))
    lines = [
        f"## {name}: {rows:,} x {width:,}, at {record['target_text']}",
        "",
        (
            f"{record['source']}; {record['num_queries']:,} queries; exact MRR@10 "
            f"{record['exact_mrr']:.4f}; the vectors are {record['exact_vector_bytes'] / 1e6:,.0f} MB "
            f"in float32. Milliseconds per query, top 10: median of the rounds (lowest to highest). "
            f"RAM: anonymous growth of the engine's own process when it opens its files; code: what its "
            f"libraries and compiled loops take without any; of files: pages mapped, not owned. "
            f"Engines more than 5 times slower than the fastest have one round. A funnel is a graph of the "
            f"prefix by the engine named, its shortlist scored by FAISS at the full width. What `choose` "
            f"found was found by other queries, and is as good on these as it is; it counts below where "
            f"it reaches the target."
        ),
        "",
        engine_table(peers),
        "",
    ]
    if record["left_out"]:
        left_out = (f"{peer} ({why})" for peer, why in record["left_out"].items())
        lines += ["Left out: " + "; ".join(left_out) + ".", ""]
    lines += versions(peers)
    least = record["target"]["least"] - SHORTFALL
    which = "recall" if record["target"]["metric"] == "recall" else "mrr_share"
    at_target = {name: peer for name, peer in peers.items() if peer[which] >= least}
    return [*lines, "", *write_standing(at_target), "", *write_stages(peers)]


def engine_table(peers: dict[str, Record]) -> str:
    rows = [
        f"| {'**' + name + '**' if peer['is_ours'] else name} | {peer['setting']} | "
        f"{peer['recall']:.3f} | {peer['mrr_share']:.1%} | {times(peer, 'single_s')} | "
        f"{median(each['p99_s'] for each in peer['rounds']) * 1e3:.3f} | {times(peer, 'batch_s')} | "
        f"{times(peer, 'two_threads_s')} | {peer['opened']['anonymous_bytes'] / 1e6:.0f} | "
        f"{peer['opened']['code_bytes'] / 1e6:.0f} | {peer['opened']['file_bytes'] / 1e6:.0f} | "
        f"{peer['built']['disk_bytes'] / 1e6:.0f} | "
        f"{peer['built']['seconds']:.0f} | {peer['opened']['open_s']:.2f} |"
        for name, peer in peers.items()
    ]
    header = (
        "| engine | setting | recall | share of MRR | single | p99 | batch | 2 threads | RAM MB | "
        "code MB | of files MB | disk MB | build s | open s |"
    )
    return table(header, rows)


def write_standing(peers: dict[str, Record]) -> list[str]:
    """Return how many times slower the fastest others are than our fastest, mode by mode."""
    rows = []
    for mode, said in MODES.items():
        for among, is_meant in GROUPS.items():
            meant = {name: peer for name, peer in peers.items() if is_meant(name, peer)}
            ours, others = (
                [name for name, peer in meant.items() if peer["is_ours"] == whose]
                for whose in (True, False)
            )
            if ours and others:
                mine = min(ours, key=lambda name: middle(peers[name], mode))
                other = min(others, key=lambda name: middle(peers[name], mode))
                pairs = zip(peers[other]["rounds"], peers[mine]["rounds"], strict=False)
                ratio = [theirs[mode] / own[mode] for theirs, own in pairs]
                ram, its = (peers[name]["opened"]["anonymous_bytes"] for name in (mine, other))
                rows.append(
                    f"| {said} | {among} | {mine} | {other} | {spread(ratio)} | {ram / its:.2f} |"
                )
    header = "| mode | among | ours | fastest other | its time / ours | our RAM / its |"
    return [table(header, rows)]


def write_stages(peers: dict[str, Record]) -> list[str]:
    """Return what each stage of our plans scores and reads, per query, and the certificates."""
    rows, lines = [], []
    for name, peer in peers.items():
        for stage in peer["told"].get("stages", []):
            scored, read = (
                "" if stage[what] is None else f"{stage[what]:,.0f}" for what in ("rows", "bytes")
            )
            rows.append(f"| {name} | {stage['stage']} | {scored} | {read} | {stage['ms']:.3f} |")
        if peer["told"].get("plan"):
            lines.append(f"- {name}: `{peer['told']['plan']}`")
        if peer["told"].get("certificate"):
            lines.append(f"{name}, certificate: `{json.dumps(peer['told']['certificate'])[:600]}`")
    header = "| our plan | stage | rows scored per query | bytes read per query | ms, in a batch |"
    return [table(header, rows), "", *lines] if rows else lines


def write_exact(name: str, record: Record) -> list[str]:
    rows, width = record["shape"]
    peers = record["peers"]
    scan = rows * width * 4
    lines = [f"## {name}: exact engines", "", engine_table(peers), "", *write_standing(peers), ""]
    return [*lines, f"A flat scan reads {scan:,} bytes per query.", "", *write_stages(peers)]


def write_cold(name: str, record: Record) -> list[str]:
    rows = [
        f"| {peer} | {found['single_s'] * 1e3:.2f} | {found['p50_s'] * 1e3:.2f} | "
        f"{found['p99_s'] * 1e3:.2f} | {1 / found['single_s']:,.0f} | {found['read_bytes']:,.0f} |"
        for peer, found in sorted(record.items(), key=lambda item: item[1]["single_s"])
    ]
    header = "| engine | ms | p50 | p99 | QPS | bytes from disk per query |"
    return [f"## {name}: single queries with a cold tail", "", table(header, rows)]


def write_life(name: str, record: Record) -> list[str]:
    rows = [f"| {what} | {value:.3g} |" for what, value in record.items() if _is_number(value)]
    return [
        f"## {name}: the life of an index",
        "",
        f"Built for {record['plan']}; resized to {record['other']}.",
        "",
        table("| what | value |", rows),
        "",
        f"Adds of 1,000 vectors, seconds: {spread(record['adds_s'])}.",
    ]


def write_growth(name: str, record: list[Record]) -> list[str]:
    rows = [
        f"| {row['peer']} | {row['rows']:,} | {row['single_s'] * 1e3:.3f} | {row['build_s']:.1f} | "
        f"{row['anonymous_bytes'] / 1e6:.0f} | {row['disk_bytes'] / 1e6:.0f} |"
        for row in record
    ]
    fits = [
        f"| {peer} | {exponent(record, peer, 'single_s'):.2f} | {exponent(record, peer, 'build_s'):.2f} | "
        f"{exponent(record, peer, 'anonymous_bytes'):.2f} |"
        for peer in dict.fromkeys(row["peer"] for row in record)
    ]
    header = "| engine | rows | ms | build s | RAM MB | disk MB |"
    return [
        f"## {name}: growth at a fixed setting",
        "",
        table(header, rows),
        "",
        table("| engine | exponent of time | of build | of RAM |", fits),
    ]


PARTS = {
    "compare": write_compare,
    "exact": write_exact,
    "cold": write_cold,
    "life": write_life,
    "growth": write_growth,
}


# --- Words ---------------------------------------------------------------------------------------


def middle(peer: Record, mode: str) -> float:
    return median(each[mode] for each in peer["rounds"])


def times(peer: Record, mode: str) -> str:
    return spread([each[mode] for each in peer["rounds"]], 1e3)


def versions(peers: dict[str, Record]) -> list[str]:
    packages = sorted({peer["package"] for peer in peers.values()})
    return ["Peers: " + ", ".join(f"{name} {version_of(name)}" for name in packages) + "."]


def _is_by_hand(name: str) -> bool:
    return name.startswith("funnel")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
