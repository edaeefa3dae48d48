"""Image pulls by containerd through the proxy, on hosts with links of a given rate."""

import subprocess
import threading
import time

from report import FLAVOURS, head, row, size, title

from harness import Cluster, Images, Registry
from harness.netns import Network
from harness.node import RULES, Node

RATE_MBIT = 200


def image_pull() -> None:
    """1 GB in 5 layers, 3 nodes at once: the last node against the time that its link or the registry's takes for the bytes."""
    layer = size("BENCH_LAYER_BYTES", 200_000_000)
    title(f"3 nodes with links of {RATE_MBIT} Mbit/s pull {5 * layer / 1e9:.2f} GB in 5 layers, all at once")
    head("who", "last node s", "bound s", "last / bound", "plain download alone s", "last / alone", "registry bytes / image")
    for flavour in FLAVOURS:
        with Network() as network, Cluster() as cluster:
            images = Images(cluster.folder / "images")
            image = images.image([images.layer({f"model{number}": layer}, "stored") for number in range(5)])
            registry_ns, registry_ip = network.host(RATE_MBIT)
            registry = cluster.registry(ip=registry_ip, netns=registry_ns)
            reference = images.push(image, registry, "bench/model")
            control_ns, control_ip = network.host()
            scheduler = cluster.scheduler(ip=control_ip, netns=control_ns)
            seed_ns, seed_ip = network.host(RATE_MBIT)
            cluster.daemon("seed", ip=seed_ip, netns=seed_ns, flavour=flavour, seed=True, schedulers=[scheduler], proxy=RULES).ready()
            nodes = []
            for number in range(3):
                namespace, ip = network.host(RATE_MBIT)
                nodes.append(Node(cluster, f"node{number}", [registry], ip=ip, netns=namespace, flavour=flavour,
                                  schedulers=[scheduler]).ready())
            # Until the scheduler knows all of them, of either flavour.
            time.sleep(3)
            alone = _alone(registry, image, nodes[0].daemon.netns)
            before = sum(registry.blob_bytes().values())
            last = _pull_at_once(nodes, reference)
            sent = sum(registry.blob_bytes().values()) - before
            bound = image.size * 8 / RATE_MBIT / 1e6
            row(flavour.value, f"{last:.2f}", f"{bound:.2f}", f"{last / bound:.3f}", f"{alone:.2f}", f"{last / alone:.3f}",
                f"{sent / image.size:.4f}")


def _alone(registry: Registry, image, netns: str) -> float:
    """Seconds for the image's blobs by curl on one node while nobody else does anything."""
    began = time.monotonic()
    for blob in image.blobs:
        subprocess.run(["ip", "netns", "exec", netns, "curl", "-sf", "-o", "/dev/null",
                        f"{registry.url}/v2/bench/model/blobs/{blob.digest}"], check=True)
    return time.monotonic() - began


def _pull_at_once(nodes: list[Node], reference: str) -> float:
    """Seconds until the last node has the image."""
    failures = []

    def pull(node: Node) -> None:
        try:
            node.cri_pull(reference, seconds=900)
        except BaseException as failure:
            failures.append(failure)

    began = time.monotonic()
    threads = [threading.Thread(target=pull, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.monotonic() - began
