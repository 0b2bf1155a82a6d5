/* Run databases in the formats of others: tables as CSV, curves as TensorBoard's event files or in MLflow's file store.
 *
 * CSV: a file a table with a header, integers, reals with all their digits, text in quotes, NULL as nothing; a blob is
 * where it lies in TABLE.COLUMN.npy (COLUMN_start, COLUMN_count, in elements). schema.json has every column's type.
 * TensorBoard: FOLDER/RUN/events.out.tfevents..., the scalars of v_metrics, medians over heads of some columns of
 * layer_spectra, histograms of singular values. MLflow: FOLDER/EXPERIMENT/RUN with the same scalars as metrics, and
 * the configuration as parameters. A step's time is the run's beginning and the time of its steps until then. */
#pragma once

#include "core/status.h"

#include <stdint.h>

typedef enum formats_kind { FORMATS_CSV, FORMATS_TENSORBOARD, FORMATS_MLFLOW } formats_kind;

typedef struct formats_counts {
    int runs;
    int64_t files, values; /* values: rows of tables, or points of curves */
} formats_counts;

/* Writes what the databases (files or run folders, finished or being written) hold into a new folder, which appears
 * when it is whole; several are merged first, so a run in two of them is one. USAGE when the folder is there and not
 * empty; NO_INPUT, DATA and IO as merge_databases. */
status formats_write(const char *const *databases, int count, formats_kind kind, const char *folder,
                     formats_counts *out);
