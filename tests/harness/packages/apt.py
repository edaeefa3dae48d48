"""APT, with a repository of Debian packages, in folders of its own."""

from pathlib import Path

from .client import PackageManager, Reach, run

_CONTROL = """Package: sample
Version: {version}
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: A sample
"""


class Apt(PackageManager):
    rule = r"/pool/.*\.deb$|/by-hash/"

    def publish(self, version: str, content: bytes) -> str:
        repository, tree = self.www / "apt", self.folder / f"deb-{version}"
        package = f"pool/main/s/sample/sample_{version}_all.deb"
        index = repository / "dists/stable/main/binary-all"
        for folder in (tree / "DEBIAN", tree / "usr/share/sample", (repository / package).parent, index):
            folder.mkdir(parents=True, exist_ok=True)
        (tree / "DEBIAN/control").write_text(_CONTROL.format(version=version))
        (tree / "usr/share/sample/content").write_bytes(content)
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, repository / package, folder=repository)
        packages = run("apt-ftparchive", "packages", "pool", folder=repository)
        (index / "Packages").write_text(packages)
        (repository / "dists/stable/Release").unlink(missing_ok=True)
        release = run("apt-ftparchive", "-o", "APT::FTPArchive::Release::Suite=stable",
                      "-o", "APT::FTPArchive::Release::Architectures=all", "-o", "APT::FTPArchive::Release::Components=main",
                      "release", "dists/stable", folder=repository)
        (repository / "dists/stable/Release").write_text(release)
        return f"apt/{package}"

    def install(self, reach: Reach, folder: Path) -> bytes:
        for name in ("state/lists/partial", "cache/archives/partial", "etc/preferences.d", "etc/trusted.gpg.d", "etc/apt.conf.d", "root"):
            (folder / name).mkdir(parents=True)
        (folder / "state/status").touch()
        (folder / "etc/sources.list").write_text(f"deb [trusted=yes] {reach.url}/apt stable main\n")
        (folder / "apt.conf").write_text(
            f'Dir::State "{folder}/state";\nDir::State::status "{folder}/state/status";\nDir::Cache "{folder}/cache";\n'
            f'Dir::Etc "{folder}/etc";\nDir::Log "{folder}";\nAPT::Architecture "amd64";\nAPT::Architectures {{ "amd64"; }};\n'
            f'APT::Sandbox::User "{_owner(folder)}";\nAcquire::Languages "none";\nAcquire::Retries "0";\n'
            f'Acquire::http::Proxy "{reach.proxy}";\nAcquire::https::Proxy "{reach.proxy}";\n'
            + (f'Acquire::https::CAInfo "{reach.ca}";\n' if reach.ca else ""))
        env = {"APT_CONFIG": str(folder / "apt.conf")}
        reach.run("apt-get", "update", "--error-on=any", folder=folder, env=env)
        reach.run("apt-get", "download", "sample", folder=folder, env=env)
        [package] = folder.glob("sample_*.deb")
        run("dpkg-deb", "--extract", package, folder / "root", folder=folder)
        return (folder / "root/usr/share/sample/content").read_bytes()


def _owner(folder: Path) -> str:
    """Whoever runs the test: APT would become a user that cannot write here."""
    return folder.owner()
