/* What a tokenizer.json does to a text before and after its tokens: normalizer, pre-tokenizer, decoder. */
#include "data/strict_json.h"
#include "data/tokenizer_json_private.h"

#include <string.h>

/* Known: null, and parts that write spaces as U+2581, at the start of the text too. */
static status read_normalizer(tokenizer_json *t, const json_t *normalizer) {
    for (size_t i = 0; i < strict_parts_of(normalizer, "normalizers"); i++) {
        const json_t *part = strict_part_of(normalizer, "normalizers", i);
        if (strict_is_type(part, "Prepend") && strcmp(strict_text_at(part, "prepend"), SPACE_MARK) == 0)
            t->prefix = PREFIX_ALWAYS;
        else if (strict_is_type(part, "Replace") &&
                 strcmp(strict_text_at(json_object_get(part, "pattern"), "String"), " ") == 0 &&
                 strcmp(strict_text_at(part, "content"), SPACE_MARK) == 0)
            t->marks_spaces = true;
        else
            return strict_unknown_type("normalizer", part);
    }
    return STATUS_OK;
}

static status read_split(tokenizer_json *t, const json_t *part) {
    static const char *const names[] = {"Isolated", "MergedWithPrevious", "MergedWithNext"};
    TRY(strict_check_keys(part, "Split", STRICT_KEYS("type", "pattern", "behavior", "invert")));
    const json_t *pattern = json_object_get(part, "pattern");
    const char *expression = strict_text_at(pattern, "Regex"), *text = strict_text_at(pattern, "String");
    int behavior = 0;
    while (behavior < 3 && strcmp(names[behavior], strict_text_at(part, "behavior")) != 0) behavior++;
    if (behavior == 3 || strict_flag_at(part, "invert", false))
        return status_fail(STATUS_DATA, "a Split of behavior \"%s\"%s is not known here",
                           strict_text_at(part, "behavior"), behavior == 3 ? "" : ", inverted,");
    return splitter_add(&t->words, expression[0] ? expression : text, !expression[0], (splitter_behavior)behavior);
}

static status read_byte_level(tokenizer_json *t, const json_t *part, bool alone) {
    static const char words[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    TRY(strict_check_keys(part, "ByteLevel", STRICT_KEYS("type", "add_prefix_space", "trim_offsets", "use_regex")));
    if (strict_flag_at(part, "add_prefix_space", true)) {
        if (!alone)
            return status_fail(STATUS_DATA, "ByteLevel with add_prefix_space behind other steps is not known here");
        t->prefix = PREFIX_UNLESS_THERE;
    }
    t->byte_level = true;
    return strict_flag_at(part, "use_regex", true) ? splitter_add(&t->words, words, false, SPLIT_ISOLATED) : STATUS_OK;
}

static status read_metaspace(tokenizer_json *t, const json_t *part) {
    TRY(strict_check_keys(
        part, "Metaspace",
        STRICT_KEYS("type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep")));
    const char *scheme = strict_text_at(part, "prepend_scheme");
    if (strcmp(strict_text_at(part, "replacement"), SPACE_MARK) != 0)
        return status_fail(STATUS_DATA, "Metaspace with \"%s\" for a space is not known here",
                           strict_text_at(part, "replacement"));
    t->marks_spaces = true;
    if (strcmp(scheme, "first") == 0)
        t->prefix = PREFIX_FIRST_UNLESS_THERE;
    else if (strcmp(scheme, "never") != 0 && (scheme[0] || strict_flag_at(part, "add_prefix_space", true)))
        t->prefix = PREFIX_UNLESS_THERE;
    return strict_flag_at(part, "split", true) ? splitter_add(&t->words, SPACE_MARK, true, SPLIT_WITH_NEXT) : STATUS_OK;
}

static status read_digits(tokenizer_json *t, const json_t *part) {
    bool single = strict_flag_at(part, "individual_digits", false);
    return splitter_add(&t->words, single ? "\\p{N}" : "\\p{N}+", false, SPLIT_ISOLATED);
}

static status read_pre_tokenizer(tokenizer_json *t, const json_t *all) {
    size_t parts = strict_parts_of(all, "pretokenizers");
    for (size_t i = 0; i < parts; i++) {
        const json_t *part = strict_part_of(all, "pretokenizers", i);
        if (t->byte_level)
            return status_fail(STATUS_DATA, "a pre-tokenizer behind ByteLevel (\"%s\") is not known here",
                               strict_text_at(part, "type"));
        if (strict_is_type(part, "Split"))
            TRY(read_split(t, part));
        else if (strict_is_type(part, "Digits"))
            TRY(read_digits(t, part));
        else if (strict_is_type(part, "ByteLevel"))
            TRY(read_byte_level(t, part, parts == 1));
        else if (strict_is_type(part, "Metaspace") && parts == 1 && t->prefix == PREFIX_NEVER)
            TRY(read_metaspace(t, part));
        else
            return strict_unknown_type("pre-tokenizer", part);
    }
    if (t->byte_level && (t->marks_spaces || t->prefix == PREFIX_ALWAYS))
        return status_fail(STATUS_DATA, "ByteLevel behind a normalizer that writes spaces as U+2581 is not known here");
    return STATUS_OK;
}

/* Steps that are the plain way back; what they leave at the start of a text is what the prefix was. */
static status read_decoder(tokenizer_json *t, const json_t *decoder) {
    size_t parts = strict_parts_of(decoder, "decoders");
    bool replaces = false;
    for (size_t i = 0; i < parts; i++) {
        const json_t *part = strict_part_of(decoder, "decoders", i);
        bool plain = strict_is_type(part, "ByteFallback") || strict_is_type(part, "Fuse");
        if (t->byte_level ? strict_is_type(part, "ByteLevel") : plain) continue;
        if (!t->byte_level && strict_is_type(part, "Metaspace")) {
            replaces = true;
            const char *scheme = strict_text_at(part, "prepend_scheme");
            t->strips_marks =
                strcmp(scheme, "never") != 0 && (scheme[0] || strict_flag_at(part, "add_prefix_space", true));
        } else if (!t->byte_level && strict_is_type(part, "Replace") &&
                   strcmp(strict_text_at(part, "content"), " ") == 0 &&
                   strcmp(strict_text_at(json_object_get(part, "pattern"), "String"), SPACE_MARK) == 0)
            replaces = true;
        else if (!t->byte_level && strict_is_type(part, "Strip") && strcmp(strict_text_at(part, "content"), " ") == 0 &&
                 json_integer_value(json_object_get(part, "start")) == 1 &&
                 json_integer_value(json_object_get(part, "stop")) == 0)
            t->strips_space = true;
        else
            return strict_unknown_type("decoder", part);
    }
    if (parts == 0 || (!t->byte_level && replaces != t->marks_spaces))
        return status_fail(STATUS_DATA, "the decoder does not undo what is done to a text");
    return STATUS_OK;
}

/* What follows puts special tokens around a text, which is not asked for. */
static status check_post_processor(const json_t *all) {
    static const char *const known[] = {"ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing", NULL};
    for (size_t i = 0; i < strict_parts_of(all, "processors"); i++) {
        const json_t *part = strict_part_of(all, "processors", i);
        int k = 0;
        while (known[k] && !strict_is_type(part, known[k])) k++;
        if (!known[k]) return strict_unknown_type("post-processor", part);
    }
    return STATUS_OK;
}

status tokenizer_json_read_steps(tokenizer_json *t, const json_t *root) {
    TRY(read_normalizer(t, json_object_get(root, "normalizer")));
    TRY(read_pre_tokenizer(t, json_object_get(root, "pre_tokenizer")));
    TRY(read_decoder(t, json_object_get(root, "decoder")));
    return check_post_processor(json_object_get(root, "post_processor"));
}
