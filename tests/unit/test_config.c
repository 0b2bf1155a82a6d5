/* The configuration: typing by the schema, errors that name their place, what sizes imply, rules between keys, round
 * trips. */
#include "check.h"

#include "core/config.h"

#include <glob.h>
#include <locale.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct place {
    char folder[64], file[96];
} place;

static place make_place(const char *text) {
    place p;
    strcpy(p.folder, "/tmp/bulkhead-config-XXXXXX");
    assert_non_null(mkdtemp(p.folder));
    snprintf(p.file, sizeof p.file, "%s/pilot.yaml", p.folder);
    FILE *f = fopen(p.file, "w");
    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
    return p;
}

static void remove_place(const place *p) {
    unlink(p->file);
    rmdir(p->folder);
}

/* Loads text as the file pilot.yaml with one setting (NULL: none). */
static status load(config *c, const char *text, const char *setting) {
    place p = make_place(text);
    status_clear();
    status result = config_load(c, p.file, &setting, setting != NULL);
    remove_place(&p);
    return result;
}

/* A config of size tiny with one line more in a section, as a file and as a setting: both must be read alike. */
static status load_key(config *c, const char *section, const char *key, const char *value, bool as_setting) {
    char text[600];
    if (as_setting) {
        snprintf(text, sizeof text, "%s.%s=%s", section, key, value);
        return load(c, "model: {size: tiny}\n", text);
    }
    bool model = strcmp(section, "model") == 0;
    snprintf(text, sizeof text, "model:\n  size: tiny\n%s%s%s  %s: %s\n", model ? "" : section, model ? "" : ":",
             model ? "" : "\n", key, value);
    return load(c, text, NULL);
}

static void expect_error(const char *section, const char *key, const char *value, const char *part) {
    for (int as_setting = 0; as_setting < 2; as_setting++) {
        config c;
        status got = load_key(&c, section, key, value, as_setting);
        if (got != STATUS_CONFIG)
            fail_msg("%s.%s %s (setting %d): %s", section, key, value, as_setting, status_text(got));
        const char *message = status_message(), *where = as_setting ? "--set " : "pilot.yaml:";
        if (!strstr(message, where) || (part && !strstr(message, part)))
            fail_msg("%s.%s %s: the message is \"%s\", want \"%s\" and \"%s\"", section, key, value, message, where,
                     part);
    }
}

static void expect_double(const char *value, double want) {
    for (int as_setting = 0; as_setting < 2; as_setting++) {
        config c;
        check_status(load_key(&c, "train", "lr", value, as_setting), STATUS_OK);
        check_near(c.train.lr, want, 0);
        config_free(&c);
    }
}

static void expect_integer(const char *value, int64_t want) {
    for (int as_setting = 0; as_setting < 2; as_setting++) {
        config c;
        check_status(load_key(&c, "train", "steps", value, as_setting), STATUS_OK);
        assert_int_equal(c.train.steps, want);
        config_free(&c);
    }
}

static void numbers(void **state) {
    expect_double("1e-4", 1e-4);
    expect_double("5e-5", 5e-5);
    expect_double(".5", 0.5);
    expect_double("\"1e-4\"", 1e-4);
    expect_double("'1e-4'", 1e-4);
    expect_double("1_000", 1000);
    expect_double("+1.5E+1", 15);
    expect_double("010", 10);
    expect_double("2", 2);
    expect_integer("010", 10);
    expect_integer("1e3", 1000);
    expect_integer("1_000", 1000);
    expect_integer("\"1_000\"", 1000);
    expect_integer("20.0", 20);
    expect_integer("2.5e1", 25);
    expect_integer("0e99999999999999999999", 0);
    expect_integer("1000e-3", 1);
    expect_integer("1000000000000", 1000000000000);
    config c;
    check_status(load_key(&c, "run", "seed", "9007199254740991", false), STATUS_OK);
    assert_true(c.run.seed == 9007199254740991);
    config_free(&c);
}

static void bad_numbers(void **state) {
    static const char *const not_numbers[] = {"nan",   ".nan",  "inf",  ".inf",   "-inf",  "abc", "0x10", "1__0",
                                              "_1",    "1_",    "1e",   "1e+",    "--1",   "1 2", ".",    "e5",
                                              "1.2.3", "1e400", "true", "1e-400", "1e1.5", "1,5"};
    for (size_t i = 0; i < sizeof not_numbers / sizeof *not_numbers; i++)
        expect_error("train", "lr", not_numbers[i], "train.lr");
    static const char *const not_whole[] = {"20.5",
                                            "nan",
                                            "1e-1",
                                            "yes",
                                            "20.00000000000000000001",
                                            "1e400",
                                            "-1",
                                            "1000000000001",
                                            "99999999999999999999",
                                            "1e99999999999999999999"};
    for (size_t i = 0; i < sizeof not_whole / sizeof *not_whole; i++)
        expect_error("train", "steps", not_whole[i], "train.steps");
    char digits[2000]; /* longer than any number that somebody means */
    memset(digits, '1', sizeof digits - 1);
    digits[sizeof digits - 1] = '\0';
    digits[400] = '.';
    char text[2100];
    config c;
    snprintf(text, sizeof text, "model: {size: tiny}\ntrain: {lr: %s}\n", digits);
    check_status(load(&c, text, NULL), STATUS_CONFIG);
    snprintf(text, sizeof text, "model: {size: tiny}\ntrain: {steps: %s}\n", digits);
    check_status(load(&c, text, NULL), STATUS_CONFIG);
    expect_error("run", "seed", "9007199254740993", "run.seed");
    expect_error("train", "beta2", "1", "outside");
    expect_error("model", "layers", "0", "outside 1 to 1000");
    expect_error("train", "lr", "[1]", "train.lr");
}

static void flags(void **state) {
    static const char *const yes[] = {"true", "True", "yes", "on", "ON", "\"yes\""};
    static const char *const no[] = {"false", "FALSE", "no", "off", "Off"};
    static const char *const neither[] = {"1", "0", "y", "t", "enable"};
    config c;
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        check_status(load_key(&c, "model", "tie_embeddings", yes[i], i % 2), STATUS_OK);
        assert_true(c.model.tie_embeddings);
        config_free(&c);
    }
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) {
        check_status(load_key(&c, "attention", "latent_norm", no[i], i % 2), STATUS_OK);
        assert_false(c.attention.latent_norm);
        config_free(&c);
    }
    for (size_t i = 0; i < sizeof neither / sizeof *neither; i++)
        expect_error("model", "tie_embeddings", neither[i], "true or false");
}

static void names_stay_names(void **state) {
    static const char *const names[] = {"no", "yes", "010", "1e3", "\"null\"", "'~'", "true", "nan"};
    static const char *const want[] = {"no", "yes", "010", "1e3", "null", "~", "true", "nan"};
    for (int i = 0; i < 16; i++) {
        config c;
        check_status(load_key(&c, "run", "name", names[i / 2], i % 2), STATUS_OK);
        assert_string_equal(c.run.name, want[i / 2]);
        config_free(&c);
    }
}

static void nulls(void **state) {
    static const char *const words[] = {"", "~", "null", "Null", "NULL"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        expect_error("train", "lr", words[i], "has no value");
        expect_error("run", "name", words[i], "has no value");
        expect_error("data", "train", words[i], "has no value");
    }
    config c;
    check_status(load(&c, "model:\n  size: tiny\ntrain:\n", NULL), STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "pilot.yaml:3: train has no value"));
    check_status(load(&c, "model: {size: tiny}\ndata: {train: [a, ~]}\n", NULL), STATUS_CONFIG);
}

static void unknown_keys(void **state) {
    expect_error("train", "lrr", "1", "train.lr ");
    expect_error("train", "weight_deacy", "1", "the nearest is train.weight_decay");
    expect_error("train", "kv_lora_rank", "64", "the nearest is attention.kv_lora_rank");
    expect_error("model", "size_", "tiny", "the nearest is model.size");
    expect_error("attention", "variant", "mla_decoupled", "the nearest is mla-decoupled");
    expect_error("train", "Lr", "1", "the nearest is train.lr");
    expect_error("train", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "1",
                 "train");
    config c;
    check_status(load(&c, "model: {size: tiny}\n\ntrian:\n  lr: 1\n", NULL), STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "pilot.yaml:3: there is no section trian; the nearest is train"));
    check_status(load(&c, "model:\n  size: tiny\n  layerz: 2\n", NULL), STATUS_CONFIG);
    assert_non_null(
        strstr(status_message(), "pilot.yaml:3: there is no key model.layerz; the nearest is model.layers"));
}

static void duplicates(void **state) {
    config c;
    check_status(load(&c, "model: {size: tiny}\ntrain:\n  lr: 1\n  steps: 20\n  lr: 2\n", NULL), STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "pilot.yaml:5: train.lr is there twice (first in line 3)"));
    check_status(load(&c, "model: {size: tiny}\ntrain: {lr: 1}\ntrain: {steps: 2}\n", NULL), STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "pilot.yaml:3: section train is there twice (first in line 2)"));
    const char *twice[] = {"model.size=tiny", "train.lr=1", "train.lr=2"};
    status_clear();
    check_status(config_load(&c, NULL, twice, 3), STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "--set train.lr=2: train.lr is set twice"));
    check_status(load(&c, "model: {size: tiny}\ntrain: {lr: 1}\n", "train.lr=2"), STATUS_OK); /* the setting wins */
    check_near(c.train.lr, 2, 0);
    config_free(&c);
}

static void malformed(void **state) {
    static const char *const texts[] = {
        "train:\n\tlr: 1\n",
        "train:\n  lr: 1\n\tsteps: 20\n",
        "train: [1, 2\n",
        "train: {lr: 1\n",
        "- a\n",
        "just words\n",
        "train: 5\n",
        "train:\n  lr:\n    deeper: 1\n",
        "train: {lr: *x}\n",
        "train: {lr: &x 1}\n",
        "run: {name: !!str a}\n",
        "run: {name: \"a\\0b\"}\n",
        "? [a]\n: b\n",
        "run: {name: \xff\xfe}\n",
        "a: b: c\n",
        "model: {size: tiny}\n---\nmodel: {size: tiny}\n",
        "%YAML 9.9\n---\na\n",
        "run: {name: \"open\n",
        "run: {tags: [[a]]}\n",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        config c;
        status got = load(&c, texts[i], NULL);
        if (got != STATUS_CONFIG || !strstr(status_message(), "pilot.yaml:"))
            fail_msg("%s: %s (%s)", texts[i], status_text(got), status_message());
    }
    config c;
    check_status(load(&c, "model:\n  size: tiny\ntrain:\n\tlr: 1\n", NULL), STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "pilot.yaml:4: "));
    check_status(load(&c, "run:\n  name: a\n  group: b\xff\n", NULL), STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "pilot.yaml:3: "));

    enum { DEEP = 200000 };
    char *deep = malloc(DEEP + 16);
    strcpy(deep, "train: ");
    memset(deep + 7, '[', DEEP);
    deep[DEEP + 7] = '\0';
    check_status(load(&c, deep, NULL), STATUS_CONFIG);
    free(deep);
}

static void bad_settings(void **state) {
    static const char *const settings[] = {
        "",      "train",         "train.lr",          "lr=1",         ".lr=1", "train.=1", "=1", "train.lr=",
        "a.b=c", "run.name=\xff", "data.train=[a,,b]", "data.train=a,"};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        config c;
        status got = load(&c, "model: {size: tiny}\n", settings[i]);
        if (got != STATUS_CONFIG || !strstr(status_message(), "--set "))
            fail_msg("%s: %s (%s)", settings[i], status_text(got), status_message());
    }
}

static void missing_files(void **state) {
    config c;
    status_clear();
    check_status(config_load(&c, "/nowhere/at-all.yaml", NULL, 0), STATUS_NO_INPUT);
    assert_non_null(strstr(status_message(), "/nowhere/at-all.yaml"));
    status_clear();
    check_status(config_load(&c, "/tmp", NULL, 0), STATUS_NO_INPUT);
    check_status(load(&c, "", NULL), STATUS_CONFIG); /* no shape */
    assert_non_null(strstr(status_message(), "model.layers"));
}

static void lists(void **state) {
    static const char *const forms[] = {"a, b c ,d", "[a, b c, d]", "[\"a\",'b c', \"d\"]"};
    for (int i = 0; i < 6; i++) {
        config c;
        check_status(load_key(&c, "run", "tags", forms[i / 2], i % 2), STATUS_OK);
        assert_int_equal(c.run.tags.count, 3);
        assert_string_equal(c.run.tags.items[0], "a");
        assert_string_equal(c.run.tags.items[1], "b c");
        assert_string_equal(c.run.tags.items[2], "d");
        config_free(&c);
    }
    config c;
    check_status(load_key(&c, "data", "train", "[\"a,b\", c]", true), STATUS_OK);
    assert_int_equal(c.data.train.count, 2);
    assert_string_equal(c.data.train.items[0], "a,b");
    config_free(&c);
    check_status(load_key(&c, "data", "train", "*.bin", true), STATUS_OK); /* no alias on the command line */
    assert_string_equal(c.data.train.items[0], "*.bin");
    config_free(&c);
    check_status(load_key(&c, "run", "tags", "[]", true), STATUS_OK);
    assert_int_equal(c.run.tags.count, 0);
    config_free(&c);
}

static void sizes(void **state) {
    static const struct {
        const char *name;
        int64_t layers, width, heads, ffn, vocab, context, latent;
    } want[] = {{"tiny", 4, 256, 4, 688, 4096, 256, 128},
                {"60m", 8, 512, 8, 1376, 32000, 1024, 256},
                {"130m", 12, 768, 12, 2048, 32000, 1024, 256},
                {"350m", 24, 1024, 16, 2736, 32000, 1024, 256},
                {"1b", 24, 2048, 32, 5461, 32000, 1024, 256}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        config c;
        char text[64];
        snprintf(text, sizeof text, "model: {size: %s}\n", want[i].name);
        check_status(load(&c, text, NULL), STATUS_OK);
        assert_int_equal(c.model.layers, want[i].layers);
        assert_int_equal(c.model.width, want[i].width);
        assert_int_equal(c.model.heads, want[i].heads);
        assert_int_equal(c.model.kv_heads, want[i].heads);
        assert_int_equal(c.model.ffn, want[i].ffn);
        assert_int_equal(c.model.vocab, want[i].vocab);
        assert_int_equal(c.model.context, want[i].context);
        assert_int_equal(c.model.head_dim, 64);
        assert_int_equal(c.attention.kv_lora_rank, want[i].latent);
        assert_int_equal(c.attention.qk_nope_head_dim, 64);
        assert_int_equal(c.attention.qk_rope_head_dim, 32);
        assert_int_equal(c.attention.v_head_dim, 64);
        config_free(&c);
    }
    config c;
    check_status(load(&c, "model: {size: tiny, layers: 3, vocab: 512}\n", "model.context=31"), STATUS_OK);
    assert_int_equal(c.model.layers, 3);
    assert_int_equal(c.model.vocab, 512);
    assert_int_equal(c.model.context, 31);
    assert_int_equal(c.model.width, 256);
    config_free(&c);
    check_status(load(&c, "model: {layers: 1, width: 72, heads: 3, ffn: 200, context: 8}\n", NULL), STATUS_OK);
    assert_int_equal(c.model.head_dim, 24);
    assert_int_equal(c.attention.kv_lora_rank, 96);
    assert_int_equal(c.model.vocab, 0); /* the dataset's */
    config_free(&c);
}

static void run_names(void **state) {
    config c;
    check_status(load(&c, "model: {size: tiny}\n", NULL), STATUS_OK);
    assert_string_equal(c.run.name, "pilot");
    assert_string_equal(c.run.dir, "runs/pilot");
    config_free(&c);
    check_status(load(&c, "model: {size: tiny}\nrun: {name: no, dir: /data/x}\n", NULL), STATUS_OK);
    assert_string_equal(c.run.dir, "/data/x");
    config_free(&c);
    const char *setting = "model.size=tiny";
    check_status(config_load(&c, NULL, &setting, 1), STATUS_OK);
    assert_string_equal(c.run.name, "run");
    config_free(&c);
    expect_error("run", "name", "../x", "run.name");
}

/* A rule between keys: the text must be refused with a message that names both. */
static void expect_rule(const char *text, const char *one, const char *other) {
    config c;
    status got = load(&c, text, NULL);
    if (got != STATUS_CONFIG || !strstr(status_message(), one) || !strstr(status_message(), other) ||
        !strstr(status_message(), "pilot.yaml:"))
        fail_msg("%s: %s (%s), want %s and %s", text, status_text(got), status_message(), one, other);
}

static void rules(void **state) {
    expect_rule("model: {size: tiny, kv_heads: 3}\n", "model.kv_heads", "model.heads");
    expect_rule("model: {size: tiny, kv_heads: 2}\nattention: {variant: mla-decoupled}\n", "model.kv_heads",
                "attention.variant");
    expect_rule("model: {size: tiny, heads: 3}\n", "model.heads", "model.width");
    expect_rule("model: {size: tiny, head_dim: 32}\nattention: {variant: mla-prerope, prerope_source: hidden}\n",
                "attention.prerope_source", "model.width");
    expect_rule("model: {size: tiny}\nattention: {q_lora_rank: 64}\n", "attention.q_lora_rank", "attention.variant");
    expect_rule("model: {size: tiny}\nattention: {variant: mla-prerope, v_head_dim: 32}\n", "attention.v_head_dim",
                "model.head_dim");
    expect_rule("model: {size: tiny, head_dim: 3}\n", "model.head_dim", "odd");
    expect_rule("model: {size: tiny}\nattention: {variant: mla-decoupled, qk_rope_head_dim: 5}\n",
                "attention.qk_rope_head_dim", "odd");
    expect_rule("model: {size: tiny}\ntrain: {steps: 5, warmup: 10}\n", "train.warmup", "train.steps");
    expect_rule("model: {size: tiny}\ntrain: {global_batch: 8, micro_batch: 3}\n", "train.micro_batch",
                "train.global_batch");
    expect_rule("model: {size: tiny}\nparallel: {data: 3}\n", "train.global_batch", "parallel.data");
    expect_rule("model: {size: tiny}\nparallel: {tensor: 3}\n", "parallel.tensor", "model.heads");
    expect_rule("model: {size: tiny, kv_heads: 1}\nparallel: {tensor: 2}\n", "parallel.tensor", "model.kv_heads");
    expect_rule("model: {size: tiny}\ntrain: {eval_every: 5}\n", "train.eval_every", "data.validation");
    expect_rule("model: {size: tiny}\ndiagnostics: {scopes: [heads]}\n", "diagnostics.scopes", "nearest is head");
    expect_rule("model: {size: tiny}\ndiagnostics: {parts: [rope, rope]}\n", "diagnostics.parts", "twice");
    expect_rule("model: {size: tiny}\ndiagnostics: {forms: []}\n", "diagnostics.forms", "empty");
    expect_rule("model: {size: tiny}\ndiagnostics: {parts: [content, rope]}\n", "diagnostics.parts", "only full");
    expect_rule("model: {size: tiny}\ndiagnostics: {scopes: layer, forms: channel}\n", "diagnostics.forms", "score");
    expect_rule("model: {size: tiny}\ndiagnostics: {scopes: layer, forms: weight}\n", "diagnostics.forms", "score");
    config c;
    static const char *const recorded[] = {"{parts: ov}", "{parts: [full, ov], forms: [weight]}",
                                           "{parts: content, forms: weight}", "{scopes: layer, forms: score}"};
    for (int i = 0; i < 4; i++) {
        char text[96];
        snprintf(text, sizeof text, "model: {size: tiny}\ndiagnostics: %s\n", recorded[i]);
        check_status(load(&c, text, NULL), STATUS_OK);
        config_free(&c);
    }
    check_status(load(&c,
                      "model: {size: tiny}\nattention: {variant: mla-decoupled}\n"
                      "diagnostics: {scopes: layer, forms: weight}\n",
                      NULL),
                 STATUS_OK);
    config_free(&c);
    static const char *const schedules[] = {"{steps: 10, warmup: 10}", "{steps: 1, warmup: 0}",
                                            "{steps: 0, warmup: 0}"};
    for (int i = 0; i < 3; i++) {
        char text[96];
        snprintf(text, sizeof text, "model: {size: tiny}\ntrain: %s\n", schedules[i]);
        check_status(load(&c, text, NULL), STATUS_OK);
        config_free(&c);
    }
}

static void unsupported(void **state) {
    static const char *const asked[][3] = {
        {"data", "document_mask", "true"},
    };
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++)
        expect_error(asked[i][0], asked[i][1], asked[i][2], asked[i][1]);
}

typedef struct visited {
    char text[8192];
    int count;
} visited;

static void note(void *user, const char *key, const char *value) {
    visited *v = user;
    size_t used = strlen(v->text);
    snprintf(v->text + used, sizeof v->text - used, "%s=%s\n", key, value);
    v->count++;
}

static void round_trip(void **state) {
    config c, again;
    const char *settings[] = {"model.size=60m",
                              "attention.variant=mla-decoupled",
                              "train.lr=3.0000000000000004e-4",
                              "run.name=no: \"it's\" #1",
                              "run.group=null_",
                              "run.tags=[~x, '', \"a,b\", 010, -]",
                              "train.clip=1e22",
                              "run.seed=9007199254740991",
                              "model.tie_embeddings=on",
                              "data.train=*.bin, über.bin",
                              "data.tokenizer=\"null\"",
                              "train.eps=4.9e-324"};
    int count = sizeof settings / sizeof *settings;
    check_status(config_load(&c, NULL, settings, count), STATUS_OK);
    char *yaml = config_to_yaml(&c);
    assert_non_null(yaml);
    check_status(load(&again, yaml, NULL), STATUS_OK);
    assert_true(c.train.lr == again.train.lr && c.train.eps == again.train.eps);
    visited first = {0}, second = {0};
    config_visit(&c, note, &first);
    config_visit(&again, note, &second);
    assert_string_equal(first.text, second.text);
    assert_int_equal(again.run.tags.count, 5);
    assert_string_equal(again.run.tags.items[1], "");
    assert_string_equal(again.run.tags.items[2], "a,b");
    assert_non_null(strstr(first.text, "model.size=60m\n"));
    assert_non_null(strstr(first.text, "train.lr=0.00030000000000000003\n"));
    assert_non_null(strstr(first.text, "train.micro_batch=\n"));
    char *yaml_again = config_to_yaml(&again);
    assert_string_equal(yaml, yaml_again);
    free(yaml);
    free(yaml_again);
    config_free(&c);
    config_free(&again);
}

/* A locale whose decimal sign is a comma must change nothing. */
static void other_locales(void **state) {
    static const char *const locales[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"};
    bool found = false;
    for (int i = 0; i < 3 && !found; i++) found = setlocale(LC_ALL, locales[i]) != NULL;
    if (!found) skip();
    config c;
    check_status(load_key(&c, "train", "lr", "1.5e-3", false), STATUS_OK);
    char *yaml = config_to_yaml(&c), text[8];
    assert_true(c.train.lr == 1.5e-3);
    assert_non_null(strstr(yaml, "lr: 0.0015\n"));
    snprintf(text, sizeof text, "%.1f", 0.5); /* and the person's own locale is back */
    assert_string_equal(text, "0,5");
    free(yaml);
    config_free(&c);
}

/* The configurations that come with the program are valid ones. */
static void shipped_configs(void **state) {
    glob_t found;
    assert_int_equal(glob(SHIPPED_CONFIGS "/*.yaml", 0, NULL, &found), 0);
    assert_int_equal(glob(SHIPPED_CONFIGS "/../reproduce/*.yaml", GLOB_APPEND, NULL, &found), 0);
    assert_true(found.gl_pathc >= 9);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        config c;
        if (strcmp(strrchr(found.gl_pathv[i], '/'), "/sweep.yaml") == 0) continue; /* a sweep: test_sweep */
        status_clear();
        check_status(config_load(&c, found.gl_pathv[i], NULL, 0), STATUS_OK);
        config_free(&c);
    }
    globfree(&found);
}

/* Sets the key and looks whether that value is refused for itself; rules between keys are another matter. */
static void expect_refusal(const char *key, const char *value, bool refused) {
    char setting[160];
    config c;
    snprintf(setting, sizeof setting, "%s=%s", key, value);
    bool good = load(&c, "model: {width: 64, heads: 4, layers: 2, ffn: 64, context: 32}\n", setting) == STATUS_OK;
    if (good) config_free(&c);
    bool is = !good && (strstr(status_message(), "there is no") || strstr(status_message(), "is not") ||
                        strstr(status_message(), "outside"));
    if (is != refused) fail_msg("%s: %s", setting, good ? "taken" : status_message());
}

/* What is told about a key is so: its place, its choices, its default, its limits. */
static void described_keys(void **state) {
    config c;
    visited all = {0};
    json_t *keys = config_describe_keys(), *k, *choice;
    size_t i, j;
    const char *from = all.text;
    check_status(config_load(&c, NULL, (const char *const[]){"model.size=tiny"}, 1), STATUS_OK);
    config_visit(&c, note, &all);
    config_free(&c);
    assert_int_equal(json_array_size(keys), all.count);
    json_array_foreach(keys, i, k) {
        const char *name = json_string_value(json_object_get(k, "key"));
        const char *value = json_string_value(json_object_get(k, "default"));
        assert_true(strncmp(from, name, strlen(name)) == 0 && from[strlen(name)] == '=');
        from = strchr(from, '\n') + 1;
        assert_true(strlen(json_string_value(json_object_get(k, "meaning"))) > 0);
        if (value[0]) expect_refusal(name, value, false);
        json_array_foreach(json_object_get(k, "choices"), j, choice) {
            expect_refusal(name, json_string_value(choice), false);
        }
        if (json_is_array(json_object_get(k, "choices"))) expect_refusal(name, "another", true);
        const json_t *least = json_object_get(k, "least"), *most = json_object_get(k, "most");
        if (!json_is_number(most)) continue;
        char beyond[64];
        snprintf(beyond, sizeof beyond, "%.17g", json_real_value(most) * 1.001 + 1);
        expect_refusal(name, beyond, true);
        snprintf(beyond, sizeof beyond, "%.17g", json_real_value(least) - 1);
        expect_refusal(name, beyond, true);
    }
    json_decref(keys);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(numbers),          cmocka_unit_test(bad_numbers),   cmocka_unit_test(flags),
    cmocka_unit_test(names_stay_names), cmocka_unit_test(nulls),         cmocka_unit_test(unknown_keys),
    cmocka_unit_test(duplicates),       cmocka_unit_test(malformed),     cmocka_unit_test(bad_settings),
    cmocka_unit_test(missing_files),    cmocka_unit_test(lists),         cmocka_unit_test(sizes),
    cmocka_unit_test(run_names),        cmocka_unit_test(rules),         cmocka_unit_test(unsupported),
    cmocka_unit_test(round_trip),       cmocka_unit_test(other_locales), cmocka_unit_test(shipped_configs),
    cmocka_unit_test(described_keys),
};

TEST_MAIN(tests)
