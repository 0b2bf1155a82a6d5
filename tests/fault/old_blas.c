/* A library to preload: OpenBLAS says that it took its oldest kernels, as it does on a processor that it does not know.
 */
char *openblas_get_corename(void);

char *openblas_get_corename(void) {
    static char name[] = "Prescott";
    return name;
}
