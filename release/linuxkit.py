"""LinuxKit's configuration of two VMs for a kernel: modules on boot, and modules by Docker.

The format is that of linuxkit's ``docs/yaml.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

from release.components import Components
from release.reference import DOCKER_HUB, Reference

LOCAL = Reference(DOCKER_HUB, "library/install-zfs")
"""Where module images are in the engine at hand."""
VARIANTS = ("boot", "docker")
# The last one is where init and modules on boot speak, and must be there for that: it is QEMU's.
_CONSOLES = {
    "amd64": "console=tty0 console=ttyS0",
    "arm64": "console=tty0 console=hvc0 console=ttyAMA0",
}


@dataclass(frozen=True)
class Machine:
    """A kernel with its module image.

    Attributes:
        kernel: the kernel image that the modules were built for, by tag.
        pinned: the same by digest.
        tar: the sideload tar, from where ``linuxkit build`` runs.
        architecture: ``amd64`` or ``arm64``.
    """

    slug: str
    kernel: Reference
    pinned: Reference
    zfs: str
    tar: str
    architecture: str

    def yaml(self, variant: str, components: Components) -> str:
        """What ``linuxkit build`` reads.

        Args:
            variant: one of ``VARIANTS``.
        """
        return self._boot(components) if variant == "boot" else self._docker(components)

    def _boot(self, components: Components) -> str:
        about = f"Loads ZFS {self.zfs} on boot."
        # The module image's output is to be seen on the console.
        cmdline = f"{self._consoles} linuxkit.runc_console=1"
        return f"""{self._head(about, cmdline, components)}
onboot:
  - name: install-zfs
    image: {_plain(LOCAL.with_tag(self.slug))}
    capabilities:
      - all
    devices:
      - path: all
        type: b
      - path: all
        type: c
    binds:
      - /dev:/dev
      - /lib/modules:/lib/modules
services:
{_getty(components)}
"""

    def _docker(self, components: Components) -> str:
        about = f"Runs Docker, with the image of ZFS {self.zfs} in /images/zfs.tar."
        return f"""{self._head(about, self._consoles, components)}
  - {_plain(components.ca_certificates)}
services:
{_getty(components)}
  - name: rngd
    image: {_plain(components.rngd)}
  - name: dhcpcd
    image: {_plain(components.dhcpcd)}
  - name: docker
    image: {_plain(components.docker)}
    capabilities:
      - all
    net: host
    mounts:
      - type: cgroup
        options: [rw, nosuid, noexec, nodev, relatime]
    devices:
      - path: all
        type: b
      - path: all
        type: c
    binds:
      - /etc/resolv.conf:/etc/resolv.conf
      - /var/lib/docker:/var/lib/docker
      - /lib/modules:/lib/modules
      - /images:/images
    command: [/usr/local/bin/docker-init, /usr/local/bin/dockerd]
    runtime:
      mkdir:
        - /var/lib/docker
files:
  - path: images/zfs.tar
    source: {self.tar}
    mode: "0644"
"""

    @property
    def _consoles(self) -> str:
        return _CONSOLES.get(self.architecture, _CONSOLES["amd64"])

    def _head(self, about: str, cmdline: str, components: Components) -> str:
        return f"""# {about}
# The kernel is {self.kernel}.
# Written by: python -m release linuxkit {self.slug}
kernel:
  image: {self.pinned}
  cmdline: "{cmdline}"
init:
  - {_plain(components.init)}
  - {_plain(components.runc)}
  - {_plain(components.containerd)}"""


def _getty(components: Components) -> str:
    return f"""  - name: getty
    image: {_plain(components.getty)}
    env:
      - INSECURE=true"""


def _plain(reference: Reference) -> str:
    """The name as ``docker images`` shows it."""
    return str(reference).removeprefix(f"{DOCKER_HUB}/").removeprefix("library/")
