/* Symbols are a linked list; a heap holds the pairs that may be joined, as rank and place in one number. An entry whose
 * pair is gone is passed over when it comes up; where another pair stands there that makes the same token, it is
 * joined, as Hugging Face's tokenizers does. */
#include "data/bpe.h"

#include "data/reader.h"

#include <stdlib.h>
#include <string.h>

typedef struct bpe_symbol {
    int32_t id;         /* -1: joined to the one before */
    int32_t prev, next; /* places; -1: none */
} symbol;

/* ---- merges ---- */

static size_t hash_of(int32_t left, int32_t right) {
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key *= 0x9E3779B97F4A7C15u;
    return (size_t)(key ^ key >> 29);
}

/* The pair, or the free place where it would stand. */
static bpe_pair *pair_of(const bpe *b, int32_t left, int32_t right) {
    size_t place = hash_of(left, right) & (b->pair_places - 1);
    while (b->pairs[place].left >= 0 && (b->pairs[place].left != left || b->pairs[place].right != right))
        place = (place + 1) & (b->pair_places - 1);
    return &b->pairs[place];
}

status bpe_begin_merges(bpe *b, size_t merges) {
    for (b->pair_places = 64; b->pair_places < 4 * merges; b->pair_places *= 2) continue;
    b->pairs = malloc(b->pair_places * sizeof *b->pairs);
    b->made = malloc((merges + 1) * sizeof *b->made);
    if (!b->pairs || !b->made) return status_fail(STATUS_INTERNAL, "out of memory");
    for (size_t i = 0; i < b->pair_places; i++) b->pairs[i].left = -1;
    return STATUS_OK;
}

status bpe_add_merge(bpe *b, int32_t rank, const tokenizer_text *left, const tokenizer_text *right) {
    size_t length = left->length + right->length;
    char *both = malloc(length + 1);
    if (!both) return status_fail(STATUS_INTERNAL, "out of memory");
    memcpy(both, left->bytes, left->length);
    memcpy(both + left->length, right->bytes, right->length);
    int32_t first = token_table_find(&b->tokens, left->bytes, left->length);
    int32_t second = token_table_find(&b->tokens, right->bytes, right->length);
    b->made[rank] = token_table_find(&b->tokens, both, length);
    free(both);
    if (first < 0 || second < 0 || b->made[rank] < 0)
        return status_fail(STATUS_DATA, "merge %d, of \"%.*s\" and \"%.*s\", is of tokens that the vocabulary lacks",
                           rank, (int)left->length, left->bytes, (int)right->length, right->bytes);
    *pair_of(b, first, second) = (bpe_pair){first, second, rank, b->made[rank]};
    return STATUS_OK;
}

void bpe_free(bpe *b) {
    token_table_free(&b->tokens);
    free(b->pairs);
    free(b->made);
}

/* ---- the heap ---- */

void bpe_scratch_free(bpe_scratch *s) {
    free(s->symbols);
    free(s->heap);
}

static status push(bpe_scratch *s, uint64_t entry) {
    if (s->heap_count == s->heap_room) {
        size_t room = s->heap_room ? 2 * s->heap_room : 256;
        uint64_t *grown = realloc(s->heap, room * sizeof *grown);
        if (!grown) return status_fail(STATUS_INTERNAL, "out of memory");
        s->heap = grown;
        s->heap_room = room;
    }
    size_t at = s->heap_count++;
    for (; at > 0 && s->heap[(at - 1) / 2] > entry; at = (at - 1) / 2) s->heap[at] = s->heap[(at - 1) / 2];
    s->heap[at] = entry;
    return STATUS_OK;
}

static uint64_t pop(bpe_scratch *s) {
    uint64_t least = s->heap[0], last = s->heap[--s->heap_count];
    size_t at = 0, child;
    while ((child = 2 * at + 1) < s->heap_count) {
        if (child + 1 < s->heap_count && s->heap[child + 1] < s->heap[child]) child++;
        if (s->heap[child] >= last) break;
        s->heap[at] = s->heap[child];
        at = child;
    }
    s->heap[at] = last;
    return least;
}

/* ---- words ---- */

static status make_room(bpe_scratch *s, size_t symbols) {
    if (symbols <= s->room) return STATUS_OK;
    symbol *grown = realloc(s->symbols, 2 * symbols * sizeof *grown);
    if (!grown) return status_fail(STATUS_INTERNAL, "out of memory");
    s->symbols = grown;
    s->room = 2 * symbols;
    return STATUS_OK;
}

static void add_symbol(bpe_scratch *s, int32_t *count, int32_t id) {
    s->symbols[*count] = (symbol){id, *count - 1, *count + 1};
    ++*count;
}

/* The character's token, or its bytes', or the unknown one. */
static status add_character(const bpe *b, bpe_scratch *s, int32_t *count, const char *bytes, size_t length) {
    int32_t id = b->characters ? token_table_find(&b->tokens, bytes, length) : -1;
    if (id >= 0) {
        add_symbol(s, count, id);
        return STATUS_OK;
    }
    bool spelled = true;
    for (size_t i = 0; i < length; i++) spelled = spelled && b->bytes[(unsigned char)bytes[i]] >= 0;
    if (spelled) {
        for (size_t i = 0; i < length; i++) add_symbol(s, count, b->bytes[(unsigned char)bytes[i]]);
        return STATUS_OK;
    }
    if (b->unknown < 0)
        return status_fail(STATUS_DATA, "the vocabulary has no token for the byte 0x%02X", (unsigned char)bytes[0]);
    if (!b->fuse_unknown || *count == 0 || s->symbols[*count - 1].id != b->unknown) add_symbol(s, count, b->unknown);
    return STATUS_OK;
}

/* Bytes of the character that begins here; of what is no UTF-8, one. */
static size_t character_at(const char *text, size_t length) {
    unsigned char c = (unsigned char)text[0];
    size_t bytes = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    return bytes <= length && reader_valid_utf8(text, bytes) == bytes ? bytes : 1;
}

static status split_symbols(const bpe *b, bpe_scratch *s, const char *word, size_t length, int32_t *count) {
    *count = 0;
    for (size_t at = 0, bytes; at < length; at += bytes) {
        bytes = b->characters ? character_at(word + at, length - at) : 1;
        TRY(add_character(b, s, count, word + at, bytes));
    }
    if (*count > 0) s->symbols[*count - 1].next = -1;
    return STATUS_OK;
}

/* What stands at the place and behind it may be joined. */
static status offer(const bpe *b, bpe_scratch *s, int32_t place) {
    int32_t next = place < 0 ? -1 : s->symbols[place].next;
    if (next < 0) return STATUS_OK;
    const bpe_pair *p = pair_of(b, s->symbols[place].id, s->symbols[next].id);
    return p->left < 0 ? STATUS_OK : push(s, (uint64_t)p->rank << 32 | (uint32_t)place);
}

static status join(const bpe *b, bpe_scratch *s, uint64_t entry) {
    int32_t place = (int32_t)(uint32_t)entry, made = b->made[entry >> 32];
    symbol *first = &s->symbols[place];
    if (first->id < 0 || first->next < 0) return STATUS_OK;
    symbol *second = &s->symbols[first->next];
    const bpe_pair *p = pair_of(b, first->id, second->id);
    if (p->left < 0 || p->id != made) return STATUS_OK;
    first->id = made;
    second->id = -1;
    first->next = second->next;
    if (first->next >= 0) s->symbols[first->next].prev = place;
    TRY(offer(b, s, first->prev));
    return offer(b, s, place);
}

status bpe_encode(const bpe *b, bpe_scratch *s, const char *word, size_t length, tokenizer_ids *out) {
    if (length > INT32_MAX / 2)
        return status_fail(STATUS_DATA, "a text of %zu bytes is too long for one piece", length);
    int32_t whole = b->whole_words_first ? token_table_find(&b->tokens, word, length) : -1, count;
    if (whole >= 0) return tokenizer_append(out, &whole, 1);
    TRY(make_room(s, length));
    TRY(split_symbols(b, s, word, length, &count));
    s->heap_count = 0;
    for (int32_t i = 0; i < count; i++) TRY(offer(b, s, i));
    while (s->heap_count > 0) TRY(join(b, s, pop(s)));
    for (int32_t i = 0; i >= 0 && i < count; i = s->symbols[i].next) TRY(tokenizer_append(out, &s->symbols[i].id, 1));
    return STATUS_OK;
}
