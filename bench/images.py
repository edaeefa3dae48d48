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
    head("who", "last node s", "bound s", "last / bound", "last byte at the daemons s", "one node alone, directly s", "last / alone",
         "registry bytes / image", "seed's uploads / image")
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
            seed = cluster.daemon("seed", ip=seed_ip, netns=seed_ns, flavour=flavour, seed=True, schedulers=[scheduler],
                                  proxy=RULES).ready()
            nodes = []
            for number in range(3):
                namespace, ip = network.host(RATE_MBIT)
                nodes.append(Node(cluster, f"node{number}", [registry], ip=ip, netns=namespace, flavour=flavour,
                                  schedulers=[scheduler]).ready())
            # Until the scheduler knows all of them, of either flavour.
            time.sleep(3)
            alone = _alone(cluster, registry, reference, nodes[0].daemon.netns)
            before = sum(registry.blob_bytes().values())
            last, last_byte = _pull_at_once(nodes, reference, image.size)
            sent = sum(registry.blob_bytes().values()) - before
            uploaded = sum(seed.metric("dragonfly_client_upload_traffic").values())
            bound = image.size * 8 / RATE_MBIT / 1e6
            row(flavour.value, f"{last:.2f}", f"{bound:.2f}", f"{last / bound:.3f}", f"{last_byte:.2f}", f"{alone:.2f}",
                f"{last / alone:.3f}", f"{sent / image.size:.4f}", f"{uploaded / image.size:.3f}")


def _alone(cluster: Cluster, registry: Registry, reference: str, netns: str) -> float:
    """Seconds for the image by a containerd that asks the registry itself, while nobody else does anything."""
    containerd = cluster.containerd("alone", netns)
    hosts = containerd.folder / "certs.d" / registry.host
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(f'server = "{registry.url}"\n[host."{registry.url}"]\n  capabilities = ["pull", "resolve"]\n')
    with open(containerd.config, "a") as config:
        config.write(f'\n  [plugins."io.containerd.grpc.v1.cri".registry]\n    config_path = "{hosts.parent}"\n')
    containerd.start()
    began = time.monotonic()
    containerd.cri_pull(reference, seconds=900)
    took = time.monotonic() - began
    containerd.close()
    subprocess.run(["rm", "-rf", containerd.folder], check=False)
    return took


def _pull_at_once(nodes: list[Node], reference: str, length: int) -> tuple[float, float]:
    """Seconds until the last node has the image, and until the last daemon had its bytes."""
    failures = []

    def pull(node: Node) -> None:
        try:
            node.cri_pull(reference, seconds=900)
        except BaseException as failure:
            failures.append(failure)

    began, last_byte = time.monotonic(), 0.0
    threads = [threading.Thread(target=pull, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.1)
        if not last_byte and all(node.daemon.received() >= length for node in nodes):
            last_byte = time.monotonic() - began
    took = time.monotonic() - began
    if failures:
        raise failures[0]
    return took, last_byte
