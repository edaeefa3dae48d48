"""dfget through one daemon or many: time, CPU seconds, memory, and what the origin sent."""

import os
import statistics
import subprocess
import time

from report import FLAVOURS, MIB, ROUNDS, head, row, spread, title

from harness import Cluster, Flavour, Origin, Process, wait_until
from harness.cluster import sha256
from harness.netns import Network


def bare_loop() -> dict:
    """Our own lower bound: sendfile -> recv + crc32 + pwrite, 8 flows of 4 MiB pieces, no protocol."""
    program = Flavour.OURS.program("examples/loopback")
    if not program.exists():
        return {}
    text = subprocess.run([program], capture_output=True, text=True, timeout=300).stdout
    return {"text": text.strip()}


def one_parent() -> None:
    """1 GiB from one parent to one child on loopback and tmpfs, whole dfget."""
    title("one parent, one child, 1 GiB, loopback, tmpfs")
    head("who", "dfget s", "CPU s parent", "CPU s child", "CPU s both", "RSS MiB parent", "RSS MiB child", "idle RSS MiB")
    medians = {}
    for flavour in FLAVOURS:
        seconds, parents, children, rss_p, rss_c, idle = [], [], [], [], [], []
        with Cluster() as cluster:
            origin = cluster.origin()
            source = origin.file("model.bin", 1024 * MIB)
            want = sha256(source)
            scheduler = cluster.scheduler()
            parent = cluster.daemon("parent", flavour=flavour, seed=True, schedulers=[scheduler]).ready()
            url = f"{origin.url}/model.bin"
            warm = parent.dfget(url, cluster.folder / "p.bin")
            assert warm.code == 0, warm.stderr
            for number in range(ROUNDS + 1):
                child = cluster.daemon(f"child{number}", flavour=flavour, schedulers=[scheduler]).ready()
                time.sleep(1)
                idle.append(child.process.rss_mib())
                before = parent.process.cpu_seconds(), child.process.cpu_seconds()
                parent.process.forget_rss_max()
                output = cluster.folder / "c.bin"
                got = child.dfget(url, output)
                assert got.code == 0, got.stderr
                if number == 0:
                    assert sha256(output) == want, "wrong bytes"
                else:
                    seconds.append(got.seconds)
                    parents.append(parent.process.cpu_seconds() - before[0])
                    children.append(child.process.cpu_seconds() - before[1])
                    rss_p.append(parent.process.rss_mib_max())
                    rss_c.append(child.process.rss_mib_max())
                output.unlink()
                cluster.remove(child)
            assert origin.bytes_sent("model.bin") < 1025 * MIB, "a child read the origin"
        both = [a + b for a, b in zip(parents, children)]
        medians[flavour] = statistics.median(seconds), statistics.median(both)
        row(flavour.value, spread(seconds), spread(parents), spread(children), spread(both),
            f"{max(rss_p):.0f}", f"{max(rss_c):.0f}", f"{max(idle):.0f}")
    if len(medians) == 2:
        time_ratio = medians[Flavour.OURS][0] / medians[Flavour.V2][0]
        cpu_ratio = medians[Flavour.OURS][1] / medians[Flavour.V2][1]
        print(f"\nours / public client: time {time_ratio:.2f}, CPU seconds {cpu_ratio:.2f}")
    if bare := bare_loop():
        print(f"\nbare loop:\n\n```\n{bare['text']}\n```")


def eight_peers() -> None:
    """8 peers at once, 1 GiB, one machine: origin bytes / file size."""
    title("eight peers at once, 1 GiB, one machine")
    head("who", "origin bytes / file", "last dfget s", "SHA-256 equal")
    for flavour in FLAVOURS:
        with Cluster() as cluster:
            origin = cluster.origin()
            source = origin.file("model.bin", 1024 * MIB)
            want = sha256(source)
            scheduler = cluster.scheduler()
            cluster.daemon("seed", flavour=flavour, seed=True, schedulers=[scheduler]).ready()
            peers = [cluster.daemon(f"peer{n}", flavour=flavour, schedulers=[scheduler]).ready() for n in range(8)]
            time.sleep(2)
            started = time.monotonic()
            outputs = [cluster.folder / f"out{n}" for n in range(8)]
            running = [peer.start_dfget(f"{origin.url}/model.bin", output) for peer, output in zip(peers, outputs)]
            codes = [process.wait(600) for process in running]
            last = time.monotonic() - started
            assert codes == [0] * 8, [process.text() for process in running]
            equal = all(sha256(output) == want for output in outputs)
            row(flavour.value, f"{origin.bytes_sent('model.bin') / source.stat().st_size:.3f}", f"{last:.2f}", equal)


def links() -> None:
    """8 hosts with 200 Mbit links, 200 MiB, all at once: the last host against one plain download alone."""
    hosts, rate, size = int(os.environ.get("BENCH_HOSTS", "8")), 200, 200 * MIB
    title(f"{hosts} hosts, links of {rate} Mbit/s, 200 MiB, all at once")
    head("who", "last host s", "median host s", "plain download alone s", "last / alone", "origin bytes / file")
    for flavour in FLAVOURS:
        with Network() as network, Cluster() as cluster:
            origin_ns, origin_ip = network.host(rate)
            origin = Origin(cluster.folder / "origin", origin_ip, netns=origin_ns)
            cluster.processes.append(origin.process)
            origin.file("model.bin", size)
            control_ns, control_ip = network.host()
            scheduler = cluster.scheduler(ip=control_ip, netns=control_ns)
            seed_ns, seed_ip = network.host(rate)
            seed = cluster.daemon("seed", ip=seed_ip, netns=seed_ns, flavour=flavour, seed=True, schedulers=[scheduler])
            seed.ready()
            peers = []
            for number in range(hosts):
                namespace, ip = network.host(rate)
                peers.append(cluster.daemon(f"peer{number}", ip=ip, netns=namespace, flavour=flavour,
                                            schedulers=[scheduler]).ready())
            time.sleep(3)
            url = f"{origin.url}/model.bin"
            alone = float(subprocess.run(
                ["ip", "netns", "exec", peers[0].netns, "curl", "-s", "-o", "/dev/null", "-w", "%{time_total}", url],
                capture_output=True, text=True, check=True).stdout)
            before = origin.bytes_sent("model.bin")
            ends, running = {}, {}
            started = time.monotonic()
            for peer in peers:
                running[peer.name] = peer.start_dfget(url, cluster.folder / f"{peer.name}.out")

            def reap() -> bool:
                for name, process in running.items():
                    if name not in ends and not process.running:
                        assert process.wait(1) == 0, process.text()
                        ends[name] = time.monotonic() - started
                return len(ends) == len(peers)

            wait_until(reap, 600, "all hosts have the file")
            last, median = max(ends.values()), statistics.median(ends.values())
            row(flavour.value, f"{last:.2f}", f"{median:.2f}", f"{alone:.2f}", f"{last / alone:.2f}",
                f"{(origin.bytes_sent('model.bin') - before) / size:.3f}")
            for peer in peers:
                assert sha256(cluster.folder / f"{peer.name}.out") == sha256(origin.www / "model.bin")


def small() -> None:
    """4 KiB, the whole dfget process."""
    title("4 KiB, whole process")
    head("who", "not held ms", "held ms")
    for flavour in FLAVOURS:
        with Cluster() as cluster:
            origin = cluster.origin()
            scheduler = cluster.scheduler()
            peer = cluster.daemon("peer", flavour=flavour, schedulers=[scheduler]).ready()
            time.sleep(2)
            cold, warm = [], []
            for number in range(40):
                origin.file(f"small{number}", 4096)
                for times in (cold, warm):
                    output = cluster.folder / "small.out"
                    output.unlink(missing_ok=True)
                    got = peer.dfget(f"{origin.url}/small{number}", output)
                    assert got.code == 0, got.stderr
                    times.append(got.seconds * 1000)
            row(flavour.value, spread(cold), spread(warm))


def cold_start() -> None:
    """`dragonfly up` until its scheduler and seed answer."""
    title("cold start of `dragonfly up` until it serves")
    times = []
    for _ in range(ROUNDS):
        with Cluster() as cluster:
            started = time.monotonic()
            argv = [Flavour.OURS.program("dragonfly"), "up", "--data-dir", cluster.folder / "data"]
            process = Process("up", argv, cluster.folder / "up.log")
            cluster.processes.append(process)
            wait_until(lambda: "serves after" in process.text() or not process.running, 20, "up serves")
            times.append(time.monotonic() - started)
            assert process.running, process.text()
    print(f"{spread([seconds * 1000 for seconds in times])} ms")
