"""Hosts that one logs in to: with processes, /tmp, home folder and SSH server of their own.

`ray up` and `ray down` send `ray stop`, which ends every Ray that it sees, and Ray keeps its state
in /tmp and HOME. So a host sees itself alone, and its user works on such a host, not on this one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.conftest import Hosts, ip, until
from tests.conftest import ROOT

# The one user's home folder is elsewhere than on this machine.
USERS = """root:x:0:0::{home}:/bin/bash
sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin
"""
SSHD = """HostKey {folder}/host
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PidFile none
"""
BOOT = """set -e
cd {folder}
mount --bind users /etc/passwd
mount --bind passwords /etc/shadow
mount --bind {name} home
mkdir {name}-root
mount --bind {root} {name}-root
mount -t tmpfs tmpfs /tmp
mkdir -p {root}
mount --move {name}-root {root}
mount -t tmpfs tmpfs /run
mount -t tmpfs -o size=1g tmpfs /dev/shm
hostname {name}
mkdir /run/sshd
exec "$(command -v sshd)" -D -e -f sshd
"""
PATH = os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin:/bin:/usr/sbin:/sbin"])


def missing() -> str:
    """What such hosts need and this machine lacks, or nothing."""
    tools = ["ip", "nsenter", "rsync", "ssh", "ssh-keygen", "sshd", "unshare"]
    found = [name for name in tools if not shutil.which(name, path=PATH)]
    if os.geteuid():
        found.append("root")
    prefix = Path(sys.prefix)
    if prefix.is_relative_to("/tmp") and not prefix.is_relative_to(ROOT):
        found.append("a Python outside of /tmp, which is another one on each host")
    return ", ".join(found)


class Machines:
    """A head, its workers and, the last, their user's computer. Other files are this machine's.

    Args:
        folder: seen by all of them, so not in /tmp.
        count: of hosts in all.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.hosts = folder, Hosts(folder, count)
        self.key, self.home = folder / "key", folder / "home"
        for name in ("key", "host"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(keygen, check=True, timeout=30)
        self.home.mkdir()
        (folder / "users").write_text(USERS.format(home=self.home))
        (folder / "passwords").write_text("root:*:::::::\n")  # not locked, and none will do
        (folder / "sshd").write_text(SSHD.format(folder=folder))

    def boot(self) -> None:
        for host, name in enumerate(self.hosts.names):
            shutil.copytree("/etc/skel", self.folder / name)
            # A host's address is that of its way out, as Ray sees it.
            ip("-n", name, "route", "add", "default", "via", f"{self.hosts.network}.254")
            with self.log(host).open("wb") as log:
                started = subprocess.Popen(
                    ["ip", "netns", "exec", name, "unshare", "--pid", "--mount", "--uts", "--fork",
                     "--kill-child", "--mount-proc", "sh", "-c",
                     BOOT.format(folder=self.folder, name=name, root=ROOT)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                    env={"PATH": PATH},
                )  # fmt: skip
            self.hosts.processes.append(started)
        listens = "Server listening"
        logs = [self.log(host) for host in range(len(self.hosts.names))]
        until(lambda: all(listens in log.read_text() for log in logs), 30, "no sshd")

    def log(self, host: int) -> Path:
        return self.folder / f"{self.hosts.names[host]}.log"

    def address(self, host: int) -> str:
        return f"{self.hosts.network}.{host + 1}"

    def enter(self, host: int, *command: str | Path) -> list[str]:
        """The command in a shell of the host, in the repository's root."""
        for pid in self.hosts.pids(host):
            if re.search(r"^NSpid:.*\t1$", Path(f"/proc/{pid}/status").read_text(), re.M):
                spaces = ["--net", "--pid", "--mount", "--uts"]
                inside = ["nsenter", f"--target={pid}", *spaces, "env", f"--chdir={ROOT}"]
                return [*inside, *map(str, command)]
        raise AssertionError(f"host {host} has no processes: {self.log(host).read_text()}")

    def start(self, host: int, *command: str | Path) -> subprocess.Popen[bytes]:
        """Starts a command that runs until the hosts are closed."""
        none = subprocess.DEVNULL
        started = subprocess.Popen(
            self.enter(host, *command), env=self.environment(), stdin=none, stdout=none,
            stderr=none, start_new_session=True,
        )  # fmt: skip
        self.hosts.processes.append(started)
        return started

    def run(
        self, host: int, *command: str | Path, seconds: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.enter(host, *command), env=self.environment() | environment, timeout=seconds,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True,
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {"PATH": PATH, "HOME": str(self.home), "RAY_AUTH_MODE": "token"}
