"""DNF, with an RPM repository, installing into a root folder of its own. Needs root."""

from pathlib import Path

from .client import PackageManager, Reach, run

_SPEC = """Name: sample
Version: {version}
Release: 1
Summary: A sample
License: none
BuildArch: noarch
%description
A sample.
%install
install -D {source} %{{buildroot}}/usr/share/sample/content
%files
/usr/share/sample/content
"""


class Dnf(PackageManager):
    rule = r"\.rpm$|/repodata/[0-9a-f]{64}-[^/]+$"

    def publish(self, version: str, content: bytes) -> str:
        build, repository = self.folder / f"rpm-{version}", self.www / "rpm"
        build.mkdir()
        (build / "content").write_bytes(content)
        (build / "sample.spec").write_text(_SPEC.format(version=version, source=build / "content"))
        run("rpmbuild", "-bb", "--define", f"_topdir {build}", "--define", f"_rpmdir {repository}/Packages",
            "--define", "_binary_payload w0.gzdio", build / "sample.spec", folder=build)
        run("createrepo_c", repository, folder=build)
        return f"rpm/Packages/noarch/sample-{version}-1.noarch.rpm"

    def install(self, reach: Reach, folder: Path) -> bytes:
        (folder / "repos").mkdir()
        (folder / "repos/sample.repo").write_text(
            f"[sample]\nname=sample\nbaseurl={reach.url}/rpm\ngpgcheck=0\nproxy={reach.proxy}\n"
            + (f"sslcacert={reach.ca}\n" if reach.ca else ""))
        (folder / "dnf.conf").write_text(f"[main]\nreposdir={folder}/repos\nlogdir={folder}/log\npersistdir={folder}/persist\n"
                                         f"cachedir={folder}/cache\nplugins=0\nmodule_platform_id=platform:test\n")
        reach.run("dnf", "--config", folder / "dnf.conf", "--installroot", folder / "root", "--releasever", "1", "--assumeyes",
            "install", "sample", folder=folder)
        return (folder / "root/usr/share/sample/content").read_bytes()
