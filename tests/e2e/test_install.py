"""What is installed works without the sources: a prefix, an archive, a .deb, module files; and is taken away again.

BUILD_DIR is the build folder; CMAKE and CPACK are the programs.
"""
import os
import shutil
import subprocess
import unittest

from harness import RunTest

BUILD, CMAKE, CPACK = (os.environ.get(name, default) for name, default in
                       (("BUILD_DIR", "build/release"), ("CMAKE", "cmake"), ("CPACK", "cpack")))
SOURCES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


def files_under(folder):
    return sorted(os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names)


class InstallTest(RunTest):
    time_limit_s = 60

    def call(self, *command, **how):
        done = subprocess.run(command, capture_output=True, text=True, timeout=self.time_limit_s, **how)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def setUp(self):
        super().setUp()
        manifest = os.path.join(BUILD, "install_manifest.txt")
        if os.path.exists(manifest):  # somebody's own installation, who may want to take it away later
            kept = shutil.copy(manifest, self.path("kept"))
            self.addCleanup(shutil.copy, kept, manifest)

    def install(self, prefix, **environment):
        self.call(CMAKE, "--install", BUILD, "--prefix", prefix, env=dict(os.environ, **environment))

    def need(self, program):
        if not shutil.which(program):
            print(f"skipped: {program} is not installed")
            self.skipTest(f"{program} is not installed")

    def try_out(self, prefix):
        """The program of that prefix trains by a configuration of that prefix, in a folder of its own, and is asked."""
        program = os.path.join(prefix, "bin", "bulkhead")
        self.dataset(vocab=64)
        here = dict(cwd=self.dir, env=dict(os.environ, HOME=self.dir, XDG_CACHE_HOME=self.path("cache")))
        self.assertIn("MPI_THREAD_MULTIPLE", self.call(program, "version", "--verbose", **here))
        settings = []
        for setting in ("run.name=tried", "data.train=train-*.bin", "data.validation=val-*.bin", "model.vocab=64",
                        "model.context=32", "model.layers=2", "run.threads=1", "train.steps=2", "train.warmup=1",
                        "train.global_batch=2", "train.eval_tokens=64", "diagnostics.when_behind=wait"):
            settings += ["--set", setting]
        self.call("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "3", program, "train",
                  os.path.join(prefix, "share", "bulkhead", "configs", "quickstart.yaml"), *settings, **here)
        # A head's null ensemble comes with the program: its columns are there though nothing was drawn.
        self.assertEqual(self.call(program, "query", "runs/tried", "--csv", "--sql",
                                   "SELECT count(*) > 0, count(*) = count(tw_score) FROM v_spectra WHERE scope = 'head' "
                                   "AND form = 'score'", **here).split()[-1], "1,1")
        self.call(program, "report", "runs/tried", "-o", "report.html", **here)
        with open(self.path("report.html")) as page:
            self.assertIn("tried", page.read())

    def test_an_installed_program_works_anywhere_and_is_taken_away_again(self):
        prefix = self.path("prefix")
        self.install(prefix)
        installed = files_under(prefix)
        for wanted in ("bin/bulkhead", "share/bulkhead/configs/tiny.yaml", "share/bulkhead/slurm/launch",
                       "share/doc/bulkhead/README.md", "share/doc/bulkhead/docs/design.md", "share/man/man1/bulkhead-train.1.gz",
                       "share/man/man5/bulkhead-configuration.5.gz", "share/bash-completion/completions/bulkhead",
                       "share/zsh/site-functions/_bulkhead"):
            self.assertIn(wanted, installed)
        moved = shutil.move(prefix, self.path("moved"))
        self.try_out(moved)
        shutil.move(moved, prefix)
        self.call(CMAKE, "--build", BUILD, "--target", "uninstall")
        self.assertEqual(files_under(prefix), [])
        self.assertFalse([folder for folder, _, _ in os.walk(prefix) if os.path.basename(folder) == "bulkhead"])

    def test_destdir_comes_before_the_prefix(self):
        self.install("/opt/bulkhead", DESTDIR=self.path("image"))
        self.assertIn("opt/bulkhead/bin/bulkhead", files_under(self.path("image")))

    def test_the_packages_hold_the_same_program(self):
        for program in ("dpkg-shlibdeps", "file"):
            self.need(program)
        self.call(CPACK, "-B", self.path("packages"), cwd=BUILD)
        made = {os.path.splitext(name)[1]: self.path("packages", name) for name in os.listdir(self.path("packages"))}
        fields = self.call("dpkg-deb", "--field", made[".deb"], "Package", "Section", "Maintainer", "Depends")
        for word in ("bulkhead", "science", "maintainers@", "libsqlite3-0", "libopenmpi3", "openmpi-bin"):
            self.assertIn(word, fields)
        self.call("dpkg-deb", "-x", made[".deb"], self.path("deb"))
        os.mkdir(self.path("archive"))
        self.call("tar", "-C", self.path("archive"), "--strip-components=1", "-xzf", made[".gz"])
        in_deb, in_archive = files_under(self.path("deb", "usr")), files_under(self.path("archive"))
        debian = {"share/doc/bulkhead/copyright", "share/doc/bulkhead/changelog.gz", "share/lintian/overrides/bulkhead",
                  "share/zsh/vendor-completions/_bulkhead"}
        self.assertEqual(set(in_deb) - set(in_archive), debian)
        self.assertEqual({os.path.dirname(name) for name in set(in_archive) - set(in_deb)},
                         {"share/modulefiles/bulkhead", "share/zsh/site-functions"})
        self.try_out(self.path("deb", "usr"))

    def test_module_files_name_the_place_where_they_lie(self):
        self.need("modulecmd")
        self.install(self.path("prefix"))
        said = self.call("modulecmd", "bash", "load", "bulkhead",
                         env=dict(os.environ, MODULEPATH=self.path("prefix", "share", "modulefiles")))
        found = self.call("bash", "-c", said + "\ncommand -v bulkhead; echo $BULKHEAD_SLURM; echo $BULKHEAD")
        self.assertEqual(found.split(), [self.path("prefix", "bin", "bulkhead"),
                                         self.path("prefix", "share", "bulkhead", "slurm"),
                                         self.path("prefix", "bin", "bulkhead")])
        self.assertTrue(os.path.exists(os.path.join(found.split()[1], "launch")))


if __name__ == "__main__":
    unittest.main()
