"""Maven, with a project whose only dependency is a range of versions, so that it asks for the newest.

Everything that mvn does is done by plugins, which come from a repository as well. Without Maven Central there are none; so the
repository holds one that is built here, and that prints where the dependencies are that Maven has resolved for it.
"""

import hashlib
import re
import subprocess
import zipfile
from pathlib import Path

from .client import PackageManager, Reach, archive

_JAVA = """package org.example;

public class ClasspathMojo extends org.apache.maven.plugin.AbstractMojo {
    private java.util.List<String> classpath;

    public void execute() {
        for (String entry : classpath) System.out.println("classpath: " + entry);
    }
}
"""

_DESCRIPTOR = """<plugin>
  <name>classpath</name><groupId>org.example</groupId><artifactId>classpath-maven-plugin</artifactId><version>1.0</version>
  <goalPrefix>classpath</goalPrefix>
  <mojos><mojo>
    <goal>print</goal><implementation>org.example.ClasspathMojo</implementation><language>java</language>
    <instantiationStrategy>per-lookup</instantiationStrategy><executionStrategy>once-per-session</executionStrategy>
    <requiresProject>true</requiresProject><requiresDependencyResolution>runtime</requiresDependencyResolution>
    <parameters><parameter><name>classpath</name><type>java.util.List</type><required>true</required></parameter></parameters>
    <configuration><classpath implementation="java.util.List">${project.runtimeClasspathElements}</classpath></configuration>
  </mojo></mojos>
</plugin>
"""

_PROJECT = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>org.example</groupId><artifactId>app</artifactId><version>1.0</version>
  <dependencies><dependency>
    <groupId>org.example</groupId><artifactId>sample</artifactId><version>[1.0,)</version>
  </dependency></dependencies>
</project>
"""

_SETTINGS = """<settings>
  <localRepository>{folder}/repository</localRepository>
  <mirrors><mirror><id>central-here</id><mirrorOf>*</mirrorOf><url>{url}/maven2</url></mirror></mirrors>
  <proxies><proxy>
    <id>dragonfly</id><active>true</active><protocol>{scheme}</protocol><host>{proxy_ip}</host><port>{proxy_port}</port>
  </proxy></proxies>
</settings>
"""


class Maven(PackageManager):
    rule = r"/maven2/.*\.(jar|war|aar|pom)$"

    def __init__(self, folder: Path):
        super().__init__(folder)
        self._versions: list[str] = []

    def publish(self, version: str, content: bytes) -> str:
        if not self._versions:
            self._publish_plugin()
        self._versions.append(version)
        return self._deploy("org.example", "sample", self._versions, {"content": content})

    def install(self, reach: Reach, folder: Path) -> bytes:
        scheme = "https" if reach.ca else "http"
        (folder / "settings.xml").write_text(_SETTINGS.format(
            folder=folder, url=reach.url, scheme=scheme, proxy_ip=reach.proxy_ip, proxy_port=reach.proxy_port))
        (folder / "pom.xml").write_text(_PROJECT)
        options = "-XX:TieredStopAtLevel=1"
        if reach.ca:
            reach.run("keytool", "-importcert", "-noprompt", "-alias", "dragonfly", "-file", reach.ca, "-keystore", folder / "trust.p12",
                "-storepass", "changeit", folder=folder)
            options += f" -Djavax.net.ssl.trustStore={folder}/trust.p12 -Djavax.net.ssl.trustStorePassword=changeit"
        printed = reach.run("mvn", "--batch-mode", "--settings", folder / "settings.xml", "org.example:classpath-maven-plugin:1.0:print",
                      folder=folder, env={"MAVEN_OPTS": options})
        [jar] = re.findall(r"^classpath: (\S*\.jar)$", printed, re.MULTILINE)
        with zipfile.ZipFile(jar) as found:
            return found.read("content")

    def _publish_plugin(self) -> None:
        build = self.folder / "mojo"
        build.mkdir()
        (build / "ClasspathMojo.java").write_text(_JAVA)
        subprocess.run(["javac", "-cp", "/usr/share/maven/lib/*", "-d", build, build / "ClasspathMojo.java"], check=True)
        self._deploy("org.example", "classpath-maven-plugin", ["1.0"], {
            "META-INF/maven/plugin.xml": _DESCRIPTOR.encode(),
            "org/example/ClasspathMojo.class": (build / "org/example/ClasspathMojo.class").read_bytes(),
        }, packaging="maven-plugin")
        # Maven gives this one to every plugin that does not ask for one.
        self._deploy("org.codehaus.plexus", "plexus-utils", ["1.1"], {"empty": b""})

    def _deploy(self, group: str, artifact: str, versions: list[str], files: dict[str, bytes], packaging: str = "jar") -> str:
        """Puts the last of the versions there, and the list of all of them beside it."""
        place, version = f"maven2/{group.replace('.', '/')}/{artifact}", versions[-1]
        stem = self.www / place / version / f"{artifact}-{version}"
        names = f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
        jar, pom, metadata = Path(f"{stem}.jar"), Path(f"{stem}.pom"), self.www / place / "maven-metadata.xml"
        archive(jar, files)
        pom.write_text(f'<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>{names}'
                       f"<version>{version}</version><packaging>{packaging}</packaging></project>\n")
        listed = "".join(f"<version>{known}</version>" for known in versions)
        metadata.write_text(f"<metadata>{names}<versioning><latest>{version}</latest><release>{version}</release>"
                            f"<versions>{listed}</versions></versioning></metadata>\n")
        for file in (jar, pom, metadata):
            Path(f"{file}.sha1").write_text(hashlib.sha1(file.read_bytes()).hexdigest())
        return str(jar.relative_to(self.www))
