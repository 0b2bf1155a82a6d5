/* The one C++ file: SentencePiece behind the C door of tokenizer.h, beside tokenizer_json. No exception and no
 * SentencePiece type leaves it. */
#include "data/tokenizer.h"

extern "C" {
#include "core/file.h"
#include "data/tokenizer_json.h"
}

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <xxhash.h>

namespace {

/* SentencePiece writes a space as U+2581, so that character itself would come back as a space. */
constexpr char META[] = "\xE2\x96\x81";
constexpr size_t META_BYTES = 3;
constexpr int64_t RESERVED_IDS = 2 + 256;
constexpr size_t MODEL_LIMIT_BYTES = size_t{1} << 30;

class samples_iterator : public sentencepiece::SentenceIterator {
  public:
    samples_iterator(const tokenizer_text *samples, int64_t count) : samples_(samples), count_(count) { set(); }
    bool done() const override { return next_ >= count_; }
    void Next() override {
        next_++;
        set();
    }
    const std::string &value() const override { return value_; }
    sentencepiece::util::Status status() const override { return {}; }

  private:
    void set() {
        if (!done()) value_.assign(samples_[next_].bytes, samples_[next_].length);
    }
    const tokenizer_text *samples_;
    int64_t count_, next_ = 0;
    std::string value_;
};

/* SentencePiece passes over long samples, samples with its own mark U+2585, tabs and NULs, and ends the process when
 * nothing is left.
 */
bool teaches(const tokenizer_text &sample) {
    std::string text(sample.bytes, sample.length);
    return sample.length <= TOKENIZER_SAMPLE_BYTES && text.find("\xE2\x96\x85") == std::string::npos &&
           text.find_first_not_of(std::string("\t\0", 2)) != std::string::npos;
}

/* The number behind `words` in SentencePiece's message; 0: not there. */
long number_after(const std::string &message, const char *words) {
    size_t at = message.find(words);
    return at == std::string::npos ? 0 : std::strtol(message.c_str() + at + std::strlen(words), nullptr, 10);
}

::status training_error(const std::string &message, int64_t vocab) {
    if (long most = number_after(message, "value <= "))
        return status_fail(STATUS_DATA,
                           "the text is too small for a vocabulary of %lld: use more text or --vocab %ld or less",
                           static_cast<long long>(vocab), most);
    if (long least = number_after(message, " vs "))
        return status_fail(STATUS_DATA,
                           "a vocabulary of %lld is too small for the text's characters: use --vocab %ld or more",
                           static_cast<long long>(vocab), least + 1);
    return status_fail(STATUS_DATA, "SentencePiece cannot train a vocabulary of %lld on this text: %s",
                       static_cast<long long>(vocab), message.c_str());
}

/* SentencePiece's log would only repeat its statuses. */
constexpr char QUIET[] = "3";

::status train(const char *path, const tokenizer_text *samples, int64_t count, int64_t vocab) try {
    std::string model;
    samples_iterator iterator(samples, count);
    auto result = sentencepiece::SentencePieceTrainer::Train(
        {
            {"model_type", "unigram"},
            {"vocab_size", std::to_string(vocab)},
            {"normalization_rule_name", "identity"},
            {"add_dummy_prefix", "false"},
            {"remove_extra_whitespaces", "false"},
            {"allow_whitespace_only_pieces", "true"},
            {"byte_fallback", "true"},
            {"max_sentence_length", std::to_string(static_cast<int>(TOKENIZER_SAMPLE_BYTES))},
            {"unk_id", "0"},
            {"eos_id", "1"},
            {"bos_id", "-1"},
            {"num_threads", "8"}, /* fixed: sums are made a thread, so the model depends on it */
            {"minloglevel", QUIET},
        },
        &iterator, &model);
    if (!result.ok()) return training_error(result.ToString(), vocab);
    return file_write_atomic(path, model.data(), model.size());
} catch (const std::exception &e) {
    return status_fail(STATUS_INTERNAL, "cannot train the tokenizer: %s", e.what());
}

/* The child's part: what training says goes through the pipe, what SentencePiece prints before it gives up nowhere. */
[[noreturn]] void train_in_child(int report, const char *path, const tokenizer_text *samples, int64_t count,
                                 int64_t vocab) {
    int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nowhere >= 0) dup2(nowhere, STDERR_FILENO);
    ::status result = train(path, samples, count, vocab);
    const char *message = status_message();
    ssize_t written = write(report, message, std::strlen(message));
    _exit(written < 0 ? STATUS_INTERNAL : result);
}

std::string read_report(int report) {
    std::string text;
    char block[512];
    for (ssize_t got; (got = read(report, block, sizeof block)) != 0;) {
        if (got > 0)
            text.append(block, static_cast<size_t>(got));
        else if (errno != EINTR)
            break;
    }
    return text;
}

/* SentencePiece ends the process over some texts (one that is a single character over and over, for one), so it trains
 * in a process of its own. */
::status train_apart(const char *path, const tokenizer_text *samples, int64_t count, int64_t vocab) {
    int report[2], state = 0;
    if (pipe2(report, O_CLOEXEC) != 0) return status_fail(STATUS_INTERNAL, "cannot make a pipe: %s", strerror(errno));
    std::fflush(nullptr); /* else the child could print it again */
    pid_t child = fork();
    if (child == 0) train_in_child(report[1], path, samples, count, vocab);
    close(report[1]);
    std::string message = child > 0 ? read_report(report[0]) : "";
    close(report[0]);
    if (child < 0) return status_fail(STATUS_INTERNAL, "cannot start a process to train in: %s", strerror(errno));
    while (waitpid(child, &state, 0) < 0)
        if (errno != EINTR) return status_fail(STATUS_INTERNAL, "lost the training process: %s", strerror(errno));
    if (WIFEXITED(state) && WEXITSTATUS(state) == STATUS_OK) return STATUS_OK;
    if (WIFEXITED(state) && !message.empty())
        return status_fail(static_cast<::status>(WEXITSTATUS(state)), "%s", message.c_str());
    if (WIFSIGNALED(state) && WTERMSIG(state) != SIGABRT)
        return status_fail(STATUS_INTERNAL, "training the tokenizer was ended by signal %d (is there enough memory?)",
                           WTERMSIG(state));
    return status_fail(STATUS_DATA,
                       "SentencePiece finds nothing to learn in this text: use more, and more varied, text");
}

} // namespace

struct tokenizer {
    std::unique_ptr<tokenizer_json, void (*)(tokenizer_json *)> json{nullptr, tokenizer_json_free};
    sentencepiece::SentencePieceProcessor processor; /* where it is no tokenizer.json */
    std::string path, hash;
    std::vector<int> meta; /* the byte pieces that spell U+2581; empty: do not treat it apart */
};

namespace {

void encode_part(const tokenizer &t, const char *bytes, size_t length, std::vector<int> &part, std::vector<int> &all) {
    if (length == 0) return;
    auto result = t.processor.Encode({bytes, length}, &part);
    if (!result.ok()) throw std::runtime_error(result.ToString());
    all.insert(all.end(), part.begin(), part.end());
}

::status encode_pieces(const tokenizer &t, const tokenizer_text &text, tokenizer_ids &out) {
    std::vector<int> part, all;
    const char *at = text.bytes, *end = at + text.length;
    while (!t.meta.empty()) {
        const char *meta = std::search(at, end, META, META + META_BYTES);
        if (meta == end) break;
        encode_part(t, at, static_cast<size_t>(meta - at), part, all);
        all.insert(all.end(), t.meta.begin(), t.meta.end());
        at = meta + META_BYTES;
    }
    encode_part(t, at, static_cast<size_t>(end - at), part, all);
    return tokenizer_append(&out, all.data(), static_cast<int64_t>(all.size()));
}

using scratch = std::unique_ptr<tokenizer_json_scratch, void (*)(tokenizer_json_scratch *)>;

scratch make_scratch(const tokenizer &t) {
    scratch s(t.json ? tokenizer_json_scratch_make() : nullptr, tokenizer_json_scratch_free);
    if (t.json && !s) throw std::bad_alloc();
    return s;
}

::status encode_one(const tokenizer &t, const scratch &s, const tokenizer_text &text, tokenizer_ids &out) {
    return t.json ? tokenizer_json_encode(t.json.get(), s.get(), text.bytes, text.length, &out)
                  : encode_pieces(t, text, out);
}

/* Texts are handed out one by one; the first failure is kept and stops the rest. */
::status encode_all(const tokenizer &t, const tokenizer_text *texts, int64_t count, int threads, tokenizer_ids *out) {
    std::atomic<int64_t> next{0};
    std::mutex lock;
    ::status failed = STATUS_OK;
    std::string failure;
    auto fail = [&](::status how, const char *message) {
        next = count;
        std::lock_guard<std::mutex> hold(lock);
        if (failed == STATUS_OK) failure = message;
        if (failed == STATUS_OK) failed = how;
    };
    auto work = [&] {
        try {
            scratch own = make_scratch(t);
            for (int64_t i; (i = next++) < count;) {
                ::status s = encode_one(t, own, texts[i], out[i]);
                if (s == STATUS_OK) continue;
                fail(s, status_message());
                status_clear();
                return;
            }
        } catch (const std::exception &e) {
            fail(STATUS_INTERNAL, e.what());
        }
    };
    std::vector<std::thread> workers;
    try {
        for (int64_t i = 1; i < std::min<int64_t>(threads, count); i++) workers.emplace_back(work);
    } catch (const std::exception &) {
        /* Fewer threads than wished for: the rest is done by those there are. */
    }
    work();
    for (auto &worker : workers) worker.join();
    return failed == STATUS_OK ? STATUS_OK : status_fail(failed, "cannot encode the text: %s", failure.c_str());
}

std::string hash_of(const char *data, size_t bytes) {
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits(data, bytes));
    std::string hex;
    for (unsigned char byte : canonical.digest) {
        char two[3];
        std::snprintf(two, sizeof two, "%02x", byte);
        hex += two;
    }
    return hex;
}

/* Models that put a space before every text would do so again behind each U+2581; those are left alone. */
void find_meta_spelling(tokenizer &t) {
    std::vector<std::string> pieces;
    if (!t.processor.Encode("a", &pieces).ok() || pieces.empty() || pieces[0].compare(0, META_BYTES, META) == 0) return;
    for (size_t i = 0; i < META_BYTES; i++) {
        char name[8];
        std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned char>(META[i]));
        int id = t.processor.PieceToId(name);
        if (!t.processor.IsByte(id)) {
            t.meta.clear();
            return;
        }
        t.meta.push_back(id);
    }
}

/* A failure of tokenizer_json, with the file's name. */
::status with_path(const tokenizer &t, ::status s) {
    if (s == STATUS_OK) return s;
    std::string message = status_message();
    status_clear();
    return status_fail(s, "%s: %s", t.path.c_str(), message.c_str());
}

bool is_json(const tokenizer &t, const char *data, size_t bytes) {
    constexpr char ENDING[] = ".json";
    constexpr size_t LENGTH = sizeof ENDING - 1;
    bool named = t.path.size() > LENGTH && t.path.compare(t.path.size() - LENGTH, LENGTH, ENDING) == 0;
    return named || (bytes > 0 && data[0] == '{');
}

::status load_json(tokenizer &t, const char *data, size_t bytes) {
    json_error_t error;
    std::unique_ptr<json_t, void (*)(json_t *)> root(json_loadb(data, bytes, JSON_REJECT_DUPLICATES, &error),
                                                     json_decref);
    if (!root) return status_fail(STATUS_DATA, "%s:%d: no JSON: %s", t.path.c_str(), error.line, error.text);
    tokenizer_json *json = nullptr;
    TRY(with_path(t, tokenizer_json_load(&json, root.get())));
    t.json.reset(json);
    return STATUS_OK;
}

::status load_pieces(tokenizer &t, const char *data, size_t bytes) {
    auto result = t.processor.LoadFromSerializedProto({data, bytes});
    if (!result.ok() || t.processor.GetPieceSize() <= 0)
        return status_fail(STATUS_DATA, "%s is neither a SentencePiece model nor a tokenizer.json", t.path.c_str());
    if (t.processor.eos_id() < 0)
        return status_fail(STATUS_DATA, "%s has no id for the end of a document (</s>); train one with eos_id",
                           t.path.c_str());
    find_meta_spelling(t);
    return STATUS_OK;
}

::status load_model(tokenizer &t, const char *data, size_t bytes) {
    t.hash = hash_of(data, bytes);
    return is_json(t, data, bytes) ? load_json(t, data, bytes) : load_pieces(t, data, bytes);
}

::status decode_pieces(const tokenizer &t, const std::vector<int> &ids, char **out, size_t *length) {
    std::string text;
    auto result = t.processor.Decode(ids, &text);
    if (!result.ok()) return status_fail(STATUS_INTERNAL, "cannot decode ids: %s", result.ToString().c_str());
    *out = static_cast<char *>(std::malloc(text.size() + 1));
    if (!*out) return status_fail(STATUS_INTERNAL, "out of memory");
    std::memcpy(*out, text.c_str(), text.size() + 1);
    *length = text.size();
    return STATUS_OK;
}

} // namespace

extern "C" {

::status tokenizer_train(const char *path, const tokenizer_text *samples, int64_t count, int64_t vocab) try {
    if (vocab <= RESERVED_IDS)
        return status_fail(STATUS_DATA,
                           "a vocabulary of %lld is too small: bytes, unknown and </s> alone are %d; use more",
                           static_cast<long long>(vocab), static_cast<int>(RESERVED_IDS));
    if (std::none_of(samples, samples + count, teaches))
        return status_fail(STATUS_DATA, "there is no text to train a tokenizer on");
    return train_apart(path, samples, count, vocab);
} catch (const std::exception &e) {
    return status_fail(STATUS_INTERNAL, "cannot train the tokenizer: %s", e.what());
}

::status tokenizer_load(tokenizer **out, const char *path) try {
    *out = nullptr;
    char *data = nullptr;
    size_t bytes = 0;
    TRY(file_read_all(&data, &bytes, path, MODEL_LIMIT_BYTES));
    std::unique_ptr<char, void (*)(void *)> owner(data, std::free);
    auto t = std::make_unique<tokenizer>();
    t->path = path;
    TRY(load_model(*t, data, bytes));
    *out = t.release();
    return STATUS_OK;
} catch (const std::exception &e) {
    return status_fail(STATUS_INTERNAL, "cannot load the tokenizer %s: %s", path, e.what());
}

void tokenizer_free(tokenizer *t) {
    delete t;
}

int64_t tokenizer_vocab(const tokenizer *t) {
    return t->json ? tokenizer_json_vocab(t->json.get()) : t->processor.GetPieceSize();
}
int32_t tokenizer_eos(const tokenizer *t) {
    return t->json ? tokenizer_json_eos(t->json.get()) : t->processor.eos_id();
}
int32_t tokenizer_bos(const tokenizer *t) {
    return t->json ? tokenizer_json_bos(t->json.get()) : t->processor.bos_id();
}
const char *tokenizer_hash(const tokenizer *t) {
    return t->hash.c_str();
}
const char *tokenizer_file_name(const tokenizer *t) {
    return t->json ? "tokenizer.json" : "tokenizer.model";
}
const char *tokenizer_piece(const tokenizer *t, int32_t id) {
    if (t->json) return tokenizer_json_piece(t->json.get(), id);
    return id >= 0 && id < t->processor.GetPieceSize() ? t->processor.IdToPiece(id).c_str() : nullptr;
}

::status tokenizer_append(tokenizer_ids *list, const int32_t *ids, int64_t count) {
    int64_t need = list->count + count;
    if (need > list->room) {
        int64_t room = std::max(need, 2 * list->room);
        void *grown = std::realloc(list->ids, static_cast<size_t>(room) * sizeof *list->ids);
        if (!grown) return status_fail(STATUS_INTERNAL, "out of memory");
        list->ids = static_cast<int32_t *>(grown);
        list->room = room;
    }
    std::copy(ids, ids + count, list->ids + list->count);
    list->count = need;
    return STATUS_OK;
}

::status tokenizer_encode(const tokenizer *t, const tokenizer_text *texts, int64_t count, int threads,
                          tokenizer_ids *out) try {
    return encode_all(*t, texts, count, threads, out);
} catch (const std::exception &e) {
    return status_fail(STATUS_INTERNAL, "cannot encode the text: %s", e.what());
}

::status tokenizer_decode(const tokenizer *t, const int32_t *ids, int64_t count, char **out, size_t *length) try {
    for (int64_t i = 0; i < count; i++)
        if (!tokenizer_piece(t, ids[i]))
            return status_fail(STATUS_DATA, "%s has no id %d (it has 0 to %lld)", t->path.c_str(), ids[i],
                               static_cast<long long>(tokenizer_vocab(t)) - 1);
    return t->json ? tokenizer_json_decode(t->json.get(), ids, count, out, length)
                   : decode_pieces(*t, std::vector<int>(ids, ids + count), out, length);
} catch (const std::exception &e) {
    return status_fail(STATUS_INTERNAL, "cannot decode ids: %s", e.what());
}
}
