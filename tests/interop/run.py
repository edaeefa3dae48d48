#!/usr/bin/env python3
"""Our programs and the public Dragonfly v2 client in one swarm, over real processes on one machine.

usage: run.py [CASE...]      DRAGONFLY_BIN and DRAGONFLY_V2_BIN name the folders of the two sets of programs.

Every case checks the SHA-256 of every output. The last line says how many cases held; the exit code is 0 only if all did.
"""

import socket
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import Cluster, Daemon, Flavour, Origin, wait_until  # noqa: E402
from harness.cluster import sha256  # noqa: E402

OURS, V2 = Flavour.OURS, Flavour.V2
MIB = 1 << 20
SIZE = 96 * MIB + 12345


def fetch_all(cluster: Cluster, origin: Origin, peers: list[Daemon], name: str, flavour: Flavour | None = None) -> None:
    """All peers at once; every output has the origin's SHA-256."""
    url, want = f"{origin.url}/{name}", sha256(origin.www / name)
    outputs = [cluster.folder / f"{peer.name}-{name}" for peer in peers]
    running = [peer.start_dfget(url, output, flavour=flavour) for peer, output in zip(peers, outputs)]
    for process in running:
        code = process.wait(180)
        assert code == 0, f"{process.name} ended with {code}: {process.text()}"
    for output in outputs:
        assert sha256(output) == want, f"{output.name} differs from the origin"


def amplification(origin: Origin, name: str) -> float:
    return origin.bytes_sent(name) / (origin.www / name).stat().st_size


def swarm_of(cluster: Cluster, origin: Origin, seed: Flavour, peers: list[Flavour], **reach) -> list[Daemon]:
    cluster.daemon("seed", flavour=seed, seed=True, **reach).ready(60)
    daemons = [cluster.daemon(f"{flavour.value}{number}", flavour=flavour, **reach)
               for number, flavour in enumerate(peers)]
    for daemon in daemons:
        daemon.ready(60)
    # The public client announces itself some seconds after its socket is there.
    time.sleep(5)
    return daemons


def theirs_under_ours_by_local_dynconfig() -> None:
    """(1) real dfdaemons and dfget under our scheduler, by local dynconfig."""
    with Cluster() as cluster:
        origin = cluster.origin()
        origin.file("f", SIZE)
        peers = swarm_of(cluster, origin, V2, [V2] * 3, schedulers=[cluster.scheduler()])
        fetch_all(cluster, origin, peers, "f")
        assert amplification(origin, "f") <= 1.01, f"origin was read {amplification(origin, 'f'):.2f} times"


def theirs_under_ours_by_manager() -> None:
    """(1) real dfdaemons and dfget under our manager and scheduler, by remote dynconfig."""
    with Cluster() as cluster:
        origin = cluster.origin()
        origin.file("f", SIZE)
        manager = cluster.manager()
        cluster.scheduler(manager=manager)
        time.sleep(6)
        peers = swarm_of(cluster, origin, V2, [V2] * 3, manager=manager)
        fetch_all(cluster, origin, peers, "f")
        assert amplification(origin, "f") <= 1.01, f"origin was read {amplification(origin, 'f'):.2f} times"


def one_swarm(seed: Flavour, first: Flavour, then: Flavour) -> None:
    """`first` fetches from the seed, then the seed is gone and `then` fetches from `first` only."""
    with Cluster() as cluster:
        origin = cluster.origin()
        origin.file("f", SIZE)
        peers = swarm_of(cluster, origin, seed, [first, then], schedulers=[cluster.scheduler()])
        fetch_all(cluster, origin, peers[:1], "f")
        cluster.daemons[0].stop()
        fetch_all(cluster, origin, peers[1:], "f")
        assert amplification(origin, "f") <= 1.01, f"origin was read {amplification(origin, 'f'):.2f} times"


def their_child_of_our_parent() -> None:
    """(2) a child of theirs fetches from a parent of ours, over Vortex TCP."""
    one_swarm(OURS, OURS, V2)


def our_child_of_their_parent() -> None:
    """(2) a child of ours fetches from a parent of theirs, over Vortex TCP."""
    one_swarm(V2, V2, OURS)


def mixed_all_at_once() -> None:
    """(2) two of each at once."""
    with Cluster() as cluster:
        origin = cluster.origin()
        origin.file("f", SIZE)
        peers = swarm_of(cluster, origin, OURS, [OURS, V2, OURS, V2], schedulers=[cluster.scheduler()])
        fetch_all(cluster, origin, peers, "f")
        assert amplification(origin, "f") <= 1.01, f"origin was read {amplification(origin, 'f'):.2f} times"


def our_seed_for_their_peers() -> None:
    """(3) our seed peer is triggered for their peers."""
    with Cluster() as cluster:
        origin = cluster.origin()
        origin.file("f", SIZE)
        peers = swarm_of(cluster, origin, OURS, [V2] * 3, schedulers=[cluster.scheduler()])
        fetch_all(cluster, origin, peers, "f")
        assert amplification(origin, "f") <= 1.01, f"origin was read {amplification(origin, 'f'):.2f} times"
        assert cluster.daemons[0].metric("dragonfly_client_upload_traffic"), "the seed served nothing"


def their_seed_for_our_peers() -> None:
    """(3) their seed peer is triggered for our peers."""
    with Cluster() as cluster:
        origin = cluster.origin()
        origin.file("f", SIZE)
        peers = swarm_of(cluster, origin, V2, [OURS] * 3, schedulers=[cluster.scheduler()])
        fetch_all(cluster, origin, peers, "f")
        assert amplification(origin, "f") <= 1.01, f"origin was read {amplification(origin, 'f'):.2f} times"


def their_dfget_with_our_daemon() -> None:
    """The public dfget at our daemon's socket, and our dfget at theirs."""
    with Cluster() as cluster:
        origin = cluster.origin()
        origin.file("f", SIZE)
        origin.file("g", SIZE)
        peers = swarm_of(cluster, origin, OURS, [OURS, V2], schedulers=[cluster.scheduler()])
        fetch_all(cluster, origin, peers[:1], "f", flavour=V2)
        fetch_all(cluster, origin, peers[1:], "g", flavour=OURS)


def ranges() -> None:
    """(4) ranges, in both directions.

    Our daemon writes the bytes of the range; the public one leaves a file of the whole length that holds them in place.
    """
    with Cluster() as cluster:
        origin = cluster.origin()
        source = origin.file("f", SIZE)
        peers = swarm_of(cluster, origin, OURS, [OURS, V2], schedulers=[cluster.scheduler()])
        for start, end in ((0, 0), (4 * MIB - 1, 4 * MIB), (10 * MIB, 40 * MIB), (SIZE - 100, SIZE - 1)):
            with open(source, "rb") as file:
                file.seek(start)
                want = file.read(end - start + 1)
            for peer in peers:
                output = cluster.folder / f"{peer.name}-{start}"
                got = peer.dfget(f"{origin.url}/f", output, "--header", f"Range: bytes={start}-{end}", flavour=peer.flavour)
                assert got.code == 0, got.stderr
                data = output.read_bytes()
                found = data if peer.flavour is OURS else data[start:end + 1]
                assert found == want, f"{peer.name}: bytes {start}-{end} differ"


def parent_killed(kind: Flavour) -> None:
    """(5) the parent that both children use is killed in mid-download."""
    with Cluster() as cluster:
        origin = cluster.origin()
        origin.file("f", 400 * MIB)
        peers = swarm_of(cluster, origin, kind, [OURS, V2], schedulers=[cluster.scheduler()])
        url, want = f"{origin.url}/f", sha256(origin.www / "f")
        outputs = [cluster.folder / peer.name / "out" for peer in peers]
        running = [peer.start_dfget(url, output) for peer, output in zip(peers, outputs)]

        def some() -> bool:
            return any(daemon.metric("dragonfly_client_download_traffic") for daemon in peers)

        wait_until(some, 30, "the first bytes have arrived")
        cluster.daemons[0].process.kill()
        for process in running:
            code = process.wait(300)
            assert code == 0, f"{process.name} ended with {code}: {process.text()}"
        for output in outputs:
            assert sha256(output) == want, f"{output} differs"


def our_parent_killed() -> None:
    """(5) a parent of ours is killed in mid-download."""
    parent_killed(OURS)


def their_parent_killed() -> None:
    """(5) a parent of theirs is killed in mid-download."""
    parent_killed(V2)


# Everything goes into the swarm, small files too.
PROXY = "rules:\n- regex: '.*'\n  schedulingPolicy: always\n"


def by_proxy(peer: Daemon, url: str, want: bytes, **headers: str) -> str:
    """Downloads through a daemon's proxy and checks the bytes; returns the task id. An underscore in a header's name is a hyphen."""
    wait_until(lambda: listens(peer.ip, 4001), 30, f"{peer.name} serves its proxy")
    got = peer.by_proxy(url, {name.replace("_", "-"): value for name, value in headers.items()})
    assert got.status == 200, f"{peer.name}: {got.status} {got.headers}"
    assert got.body == want, f"{peer.name}: the answer differs from the origin"
    return got.headers["x-dragonfly-task-id"]


def listens(ip: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((ip, port)) == 0


def child_by_proxy(parent: Flavour, child: Flavour) -> None:
    """What one has got by its proxy, the other gets from it by its own: it is the same task, and the origin is read once."""
    with Cluster() as cluster:
        origin = cluster.origin()
        want = origin.file("f", SIZE).read_bytes()
        peers = swarm_of(cluster, origin, parent, [child], schedulers=[cluster.scheduler()], proxy=PROXY)
        tasks = {by_proxy(peer, f"{origin.url}/f", want) for peer in [cluster.daemons[0], *peers]}
        assert len(tasks) == 1, f"different tasks: {tasks}"
        assert amplification(origin, "f") <= 1.01, f"origin was read {amplification(origin, 'f'):.2f} times"


def their_parent_by_proxy() -> None:
    """(6) a child of ours behind our proxy fetches from a public parent that has it by its proxy; same task id."""
    child_by_proxy(V2, OURS)


def our_parent_by_proxy() -> None:
    """(6) a public child behind its proxy fetches from a parent of ours that has it by our proxy; same task id."""
    child_by_proxy(OURS, V2)


def proxy_headers() -> None:
    """(6) the X-Dragonfly headers make the same task of a URL at both proxies, and another one than without them."""
    with Cluster() as cluster:
        origin = cluster.origin()
        want = origin.file("f", 9 * MIB).read_bytes()
        blob = "sha256:" + sha256(origin.www / "f")
        (origin.www / "v2/repo/blobs").mkdir(parents=True)
        (origin.www / "v2/repo/blobs" / blob).write_bytes(want)
        peers = swarm_of(cluster, origin, OURS, [OURS, V2], schedulers=[cluster.scheduler()], proxy=PROXY)
        url = f"{origin.url}/f?a=1&b=2"
        asked = [
            (url, {}),
            (url, {"X_Dragonfly_Tag": "tag"}),
            (url, {"X_Dragonfly_Application": "application"}),
            (url, {"X_Dragonfly_Tag": "tag", "X_Dragonfly_Application": "application", "X_Dragonfly_Piece_Length": "8mib"}),
            (url, {"X_Dragonfly_Filtered_Query_Params": "b, c"}),
            (url, {"X_Dragonfly_Content_For_Calculating_Task_ID": "content"}),
            (f"{origin.url}/v2/repo/blobs/{blob}", {}),
            (f"{origin.url}/v2/repo/blobs/{blob}", {"X_Dragonfly_Enable_Task_ID_Based_Blob_Digest": "false"}),
        ]
        seen = set()
        for address, headers in asked:
            ours, theirs = (by_proxy(peer, address, want, **headers) for peer in peers)
            assert ours == theirs, f"{address} with {headers}: {ours} here, {theirs} there"
            assert ours not in seen, f"{address} with {headers}: no task of its own"
            seen.add(ours)


CASES = [theirs_under_ours_by_local_dynconfig, theirs_under_ours_by_manager, their_child_of_our_parent,
         our_child_of_their_parent, mixed_all_at_once, our_seed_for_their_peers, their_seed_for_our_peers,
         their_dfget_with_our_daemon, ranges, our_parent_killed, their_parent_killed,
         their_parent_by_proxy, our_parent_by_proxy, proxy_headers]


def main() -> int:
    names = sys.argv[1:]
    cases = [case for case in CASES if not names or case.__name__ in names]
    failed = []
    for case in cases:
        started = time.monotonic()
        try:
            case()
            outcome = "ok"
        except Exception:
            traceback.print_exc()
            failed.append(case.__name__)
            outcome = "FAILED"
        print(f"{outcome:7} {time.monotonic() - started:6.1f} s  {case.__doc__}", flush=True)
    print(f"{len(cases) - len(failed)} of {len(cases)} cases held")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
