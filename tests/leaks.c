/* Linked into every program of the asan preset, so that leaks of ours are errors under MPI too. Open MPI keeps memory
 * until the process ends, much of it in plugins; with those left loaded, what they keep can be told from what we lose.
 */

int dlclose(void *handle);
const char *__lsan_default_suppressions(void);

int dlclose(void *handle) {
    return 0;
}

const char *__lsan_default_suppressions(void) {
    return "leak:libmpi.so\n"
           "leak:libopen-pal.so\n"
           "leak:libopen-rte.so\n"
           "leak:libpmix.so\n"
           "leak:libhwloc.so\n"
           "leak:libevent\n"
           "leak:/mca_\n"
           "leak:__vasprintf_internal\n"; /* asprintf called by any of these: the stack breaks off there */
}
