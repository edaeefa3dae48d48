"""Package managers: each makes a repository that a web server serves, and installs from it with the real client.

All of them know one package that holds one file, and `publish` brings out a newer version of it. `PackageManager` says what each of
them can do; a whole-system test treats them alike.
"""

from .apt import Apt
from .client import PackageManager, Reach
from .dnf import Dnf
from .git_lfs import GitLfs
from .hugging_face import HuggingFace
from .maven import Maven
from .pip import Pip

__all__ = ["Apt", "Dnf", "GitLfs", "HuggingFace", "Maven", "PackageManager", "Pip", "Reach"]
