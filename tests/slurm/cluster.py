"""A Slurm cluster of one machine for a test: munged, slurmctld and slurmd with a configuration, folders, ports and a key of
their own, so that a cluster which this machine belongs to is neither seen nor touched. Needs root."""
import glob
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue")

# A requeued job waits until its old credential has run out, by default two minutes. Jobs share the cores. PMIx names folders
# by job numbers: those of two clusters on this machine differ.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={nodes[0][0]}({nodes[0][1]})
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
FirstJobId={first}
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=20
{lines}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=FORCE:8 State=UP
"""


def why_not():
    """Why no cluster can be started here; None where one can."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    missing = [p for p in PROGRAMS if not shutil.which(p)]
    return f"not installed: {' '.join(missing)} (deploy/install-packages slurm)" if missing else None


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    for s in held:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


class Cluster:
    """Daemons that run in the foreground as children of this process."""

    def __init__(self, hosts=None):
        """hosts: tests/hosts/hosts.py's two, for a node on each and commands given on the first; else this machine."""
        self.hosts = hosts
        self.folder = tempfile.mkdtemp(prefix="bulkhead-slurm-")
        self.daemons = []
        self.environment = dict(os.environ, SLURM_CONF=self.path("slurm.conf"))
        os.chmod(self.folder, 0o755)  # munged wants its socket's folder to be open to all
        os.mkdir(self.path("state"))

    def path(self, name):
        return os.path.join(self.folder, name)

    def start(self):
        nodes = [(socket.gethostname().split(".")[0], "127.0.0.1")]
        if self.hosts:
            nodes = list(zip(self.hosts.name, self.hosts.address))
        for name, _ in nodes:
            os.mkdir(self.path(f"tmp-{name}"))
            os.mkdir(self.path(f"spool-{name}"))
        lines = "\n".join(f"NodeName={name} NodeAddr={address} CPUs={os.cpu_count()} State=UNKNOWN"
                          for name, address in nodes)
        with open(self.path("slurm.conf"), "w") as f:
            f.write(CONFIGURATION.format(folder=self.folder, nodes=nodes, lines=lines, ports=free_ports(2),
                                         first=random.randrange(1, 1 << 24)))
        with open(self.path("munge.key"), "wb") as f:
            os.chmod(f.fileno(), 0o600)
            f.write(os.urandom(128))
        self.daemon(0, "munged", "--foreground", "--force", f"--socket={self.path('munge.socket')}",
                    f"--key-file={self.path('munge.key')}", f"--pid-file={self.path('munge.pid')}",
                    f"--log-file={self.path('munge.log')}", f"--seed-file={self.path('munge.seed')}")
        self.wait(lambda: os.path.exists(self.path("munge.socket")), "munged does not start")
        self.daemon(0, "slurmctld", "-D")
        for i, (name, _) in enumerate(nodes):
            self.daemon(i, "slurmd", "-D", "-N", name)
        self.wait(lambda: self.run("sinfo", "-h", "-N", "-o", "%T", fails=True).split() == ["idle"] * len(nodes),
                  "the nodes do not become idle")

    def at(self, host, command):
        return (self.hosts.at(host) if self.hosts else []) + list(command)

    def daemon(self, host, *command):
        with open(self.path(f"{command[0]}-{host}.out"), "wb") as out:
            self.daemons.append(subprocess.Popen(self.at(host, command), env=self.environment, stdin=subprocess.DEVNULL,
                                                 stdout=out, stderr=out))

    def run(self, *command, fails=False):
        """One of Slurm's commands; what it said. It must succeed, unless told that it may fail: then "" """
        done = subprocess.run(self.at(0, command), env=self.environment, capture_output=True, text=True, timeout=60)
        if done.returncode != 0 and fails:
            return ""
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait(self, condition, what, limit_s=60):
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            found = condition()
            if found:
                return found
            time.sleep(0.1)
        raise AssertionError(f"{what}; {self.logs()}")

    def logs(self):
        """The ends of what the daemons said."""
        said = []
        for path in sorted(glob.glob(self.path("*.out")) + glob.glob(self.path("*.log"))):
            with open(path, errors="replace") as f:
                said.append(f"{os.path.basename(path)}:\n{f.read()[-2000:]}")
        return "\n".join(said)

    def stop(self):
        """All jobs, then all daemons; nothing stays."""
        if len(self.daemons) >= 3:
            self.run("scancel", "--signal=KILL", "--full", "-u", "root", fails=True)
            self.run("scancel", "-u", "root", fails=True)
            deadline = time.monotonic() + 20
            while self.run("squeue", "-h", fails=True).strip() and time.monotonic() < deadline:
                time.sleep(0.2)
        for d in reversed(self.daemons):
            d.terminate()
        for d in self.daemons:
            try:
                d.wait(timeout=10)
            except subprocess.TimeoutExpired:
                d.kill()
                d.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
