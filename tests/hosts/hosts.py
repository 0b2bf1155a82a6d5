"""Two hosts on one machine: network namespaces with an address each and a cable between them. Needs root."""
import os
import shutil
import signal
import subprocess
import time

AGENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent")


def ip(*arguments):
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class TwoHosts:
    """They share the file system. name[i], address[i]: i = 0, 1; mpirun runs on the first."""

    def __init__(self):
        self.prefix = f"bulkhead-{os.getpid()}"
        self.name = [f"{self.prefix}-{i}" for i in (1, 2)]
        self.address = [f"10.77.0.{i}" for i in (1, 2)]

    def start(self):
        """None, or why this machine cannot have them."""
        if os.geteuid() != 0:
            return "network namespaces need root"
        missing = [p for p in ("ip", "nsenter", "unshare") if not shutil.which(p)]
        if missing:
            return f"not installed: {' '.join(missing)} (iproute2, util-linux)"
        try:
            for name in self.name:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", self.name[0], "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", self.name[1])
            for name, address in zip(self.name, self.address):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                ip("-n", name, "link", "set", "eth0", "up")
            subprocess.run([AGENT, self.address[0], "true"], check=True, env=self.environment(), capture_output=True, text=True)
        except subprocess.CalledProcessError as e:
            return f"{' '.join(e.cmd)}: {e.stderr.strip()}"
        return None

    def environment(self):
        return dict(os.environ, HOSTS=self.prefix)

    def at(self, host):
        """What starts a command on that host."""
        return ["nsenter", f"--net=/run/netns/{self.name[host]}", "unshare", "--uts", "sh", "-c",
                'hostname "$0" && exec "$@"', self.name[host]]

    def command(self, ranks, *program):
        """mpirun on the first host with that many ranks on each. Silence on a connection is looked into after 10 s, and
        ends the job 15 s later, as docs/operations.md has it."""
        where = ",".join(f"{a}:{n}" for a, n in zip(self.address, ranks))
        return [*self.at(0), "mpirun", "--allow-run-as-root", "--bind-to", "none", "--mca", "plm_rsh_agent", AGENT,
                "--mca", "oob_tcp_keepalive_time", "10", "--mca", "oob_tcp_keepalive_intvl", "5",
                "--mca", "oob_tcp_keepalive_probes", "3", "--mca", "mpi_yield_when_idle", "1",
                "--host", where, "-n", str(sum(ranks)), *program]

    def cable(self, state):
        """down: no host hears of the other any more; up."""
        ip("-n", self.name[1], "link", "set", "eth0", state)

    def processes(self):
        found = []
        for name in self.name:
            found += subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout.split()
        return [int(p) for p in found]

    def stop(self):
        for _ in range(50):
            left = self.processes()
            for p in left:
                try:
                    os.kill(p, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if not left:
                break
            time.sleep(0.1)
        for name in self.name:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
