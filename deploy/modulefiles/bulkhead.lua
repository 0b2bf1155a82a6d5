-- For Lmod. The prefix is where this file is installed: PREFIX/share/modulefiles/bulkhead/VERSION.lua. A copy elsewhere wants PREFIX
-- written here instead.
local prefix = myFileName():match("^(.*)/share/modulefiles/")

help([[bulkhead pretrains transformers and watches the spectra of their attention heads: bulkhead --help, man bulkhead.
It wants the MPI that it was built with (bulkhead version --verbose).]])
whatis("pretrains transformers and watches the spectra of their attention heads")
conflict("bulkhead")
prepend_path("PATH", pathJoin(prefix, "bin"))
append_path("MANPATH", pathJoin(prefix, "share/man"))
prepend_path("XDG_DATA_DIRS", pathJoin(prefix, "share"))
-- The batch scripts are $BULKHEAD_SLURM/one-node.sbatch and so on; they start $BULKHEAD.
setenv("BULKHEAD", pathJoin(prefix, "bin/bulkhead"))
setenv("BULKHEAD_SLURM", pathJoin(prefix, "share/bulkhead/slurm"))
