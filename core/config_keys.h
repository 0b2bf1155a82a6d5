/* Every configuration key, once: KEY(name, type, extra, default, least, most, help).
 * type: S string, I integer, F number, B flag, L list of strings, E choice. extra: E's enum type; its names are in
 * config.c's table of that enum, in the enum's order. A default of "" for a number means derived (0 in the struct).
 * least and most bound what a person may write. */
#pragma once

#define CONFIG_RUN(KEY)                                                                                                \
    KEY(name, S, , "", 0, 0, "name of the run; the default is the config file's name")                                 \
    KEY(group, S, , "", 0, 0, "group that comparisons put it in")                                                      \
    KEY(tags, L, , "", 0, 0, "free labels")                                                                            \
    KEY(dir, S, , "", 0, 0, "run folder; the default is runs/NAME")                                                    \
    KEY(seed, I, , "1", 0, 9007199254740992, "seed of the initial weights and of the data order")                      \
    KEY(device, E, config_device, "auto", 0, 0, "auto, cpu or cuda")                                                   \
    KEY(threads, I, , "", 1, 1024, "CPU threads a compute rank; the default shares the host's cores")

#define CONFIG_MODEL(KEY)                                                                                              \
    KEY(size, E, config_size, "custom", 0, 0, "tiny, 60m, 130m, 350m or 1b; keys below override it")                   \
    KEY(layers, I, , "", 1, 1000, "L")                                                                                 \
    KEY(width, I, , "", 1, 1048576, "d")                                                                               \
    KEY(heads, I, , "", 1, 65536, "H")                                                                                 \
    KEY(kv_heads, I, , "", 1, 65536, "G; the default is heads")                                                        \
    KEY(head_dim, I, , "", 1, 65536, "D; the default is width / heads")                                                \
    KEY(ffn, I, , "", 1, 1048576, "F")                                                                                 \
    KEY(vocab, I, , "", 1, 16777216, "V; the default is the dataset's")                                                \
    KEY(context, I, , "", 1, 1048576, "T")                                                                             \
    KEY(tie_embeddings, B, , "false", 0, 0, "one matrix for the embedding and the LM head")                            \
    KEY(rope_theta, F, , "10000", 1, 1e12, "base of the rotary frequencies")                                           \
    KEY(norm_eps, F, , "1e-6", 1e-12, 1, "epsilon of RMSNorm")

#define CONFIG_ATTENTION(KEY)                                                                                          \
    KEY(variant, E, config_variant, "mha", 0, 0, "mha, mla-prerope or mla-decoupled")                                  \
    KEY(kv_lora_rank, I, , "", 1, 1048576, "R_kv; the default is 4 D (2 D for tiny)")                                  \
    KEY(q_lora_rank, I, , "0", 0, 1048576, "R_q, mla-decoupled only; 0 is none")                                       \
    KEY(qk_nope_head_dim, I, , "", 1, 65536, "D_n, mla-decoupled only; the default is D")                              \
    KEY(qk_rope_head_dim, I, , "", 1, 65536, "D_r, mla-decoupled only; the default is D / 2")                          \
    KEY(v_head_dim, I, , "", 1, 65536, "D_v; the default is D")                                                        \
    KEY(latent_norm, B, , "true", 0, 0, "RMSNorm on the latents")                                                      \
    KEY(prerope_source, E, config_source, "key", 0, 0, "what mla-prerope compresses: key or hidden")

#define CONFIG_DATA(KEY)                                                                                               \
    KEY(train, L, , "", 0, 0, "training shards: paths or globs")                                                       \
    KEY(validation, L, , "", 0, 0, "validation shards: paths or globs")                                                \
    KEY(tokenizer, S, , "", 0, 0, "the tokenizer model; the default is beside the first training shard")               \
    KEY(document_mask, B, , "false", 0, 0, "keep attention inside documents")                                          \
    KEY(document_token, E, config_token, "ends", 0, 0, "the document token leads or ends each document")               \
    KEY(repeat, B, , "true", 0, 0, "start another epoch when the data ends; false stops there")

#define CONFIG_TRAIN(KEY)                                                                                              \
    KEY(steps, I, , "1000", 0, 1000000000000, "optimizer updates")                                                     \
    KEY(global_batch, I, , "16", 1, 16777216, "samples a step over all ranks")                                         \
    KEY(micro_batch, I, , "", 1, 1048576, "samples a rank computes at once; the default is all of its share")          \
    KEY(init_from, S, , "", 0, 0,                                                                                      \
        "safetensors file or checkpoint folder of first weights; the default draws them from run.seed")                \
    KEY(lr, F, , "1e-3", 0, 1e30, "peak learning rate")                                                                \
    KEY(min_lr_ratio, F, , "0.1", 0, 1, "the last step's learning rate over the peak")                                 \
    KEY(warmup, I, , "0", 0, 1000000000000, "steps of linear warm-up")                                                 \
    KEY(weight_decay, F, , "0.1", 0, 10, "AdamW's decoupled decay")                                                    \
    KEY(decay, E, config_decay, "matrices", 0, 0, "what decays: matrices or all")                                      \
    KEY(beta1, F, , "0.9", 0, 0.999999, "AdamW")                                                                       \
    KEY(beta2, F, , "0.95", 0, 0.999999, "AdamW")                                                                      \
    KEY(eps, F, , "1e-8", 0, 1, "AdamW")                                                                               \
    KEY(clip, F, , "1.0", 0, 1e30, "largest gradient norm; 0 is no clipping")                                          \
    KEY(precision, E, config_precision, "auto", 0, 0, "auto, fp32 or bf16; auto is fp32 on CPUs, bf16 on GPUs")        \
    KEY(recompute, E, config_recompute, "none", 0, 0, "none, attention or full")                                       \
    KEY(eval_every, I, , "0", 0, 1000000000000, "steps between validations; 0 is at the end only")                     \
    KEY(eval_tokens, I, , "65536", 1, 1000000000000, "validation tokens a time, in whole samples")                     \
    KEY(log_every, I, , "10", 1, 1000000000, "steps between progress lines")                                           \
    KEY(on_nan, E, config_on_nan, "stop", 0, 0, "stop or skip when the loss or a gradient is not finite")

#define CONFIG_PARALLEL(KEY)                                                                                           \
    KEY(tensor, I, , "1", 1, 65536, "P, tensor-parallel ranks")                                                        \
    KEY(data, I, , "", 1, 65536, "Q, data-parallel ranks; the default follows from the launch")                        \
    KEY(zero, I, , "1", 0, 1, "1 shards master weights and optimizer state over the data-parallel ranks")              \
    KEY(halves, E, config_halves, "auto", 0, 0,                                                                        \
        "on: one half of a micro-batch goes on while the other is summed over the tensor-parallel ranks; auto is on "  \
        "on GPUs, off on CPUs")

#define CONFIG_DIAGNOSTICS(KEY)                                                                                        \
    KEY(ranks, I, , "1", 0, 1024, "diagnostics ranks, which divide the layers; 0 turns spectra off")                   \
    KEY(every, I, , "10", 1, 1000000000, "steps between snapshots")                                                    \
    KEY(dense_until, I, , "0", 0, 1000000000, "a snapshot after every step up to this one")                            \
    KEY(scopes, L, , "head,layer", 0, 0, "head, layer")                                                                \
    KEY(parts, L, , "full,content,rope", 0, 0, "full, content, rope, ov")                                              \
    KEY(forms, L, , "score,channel", 0, 0, "score, channel, weight")                                                   \
    KEY(sigma2, E, config_sigma2, "trace", 0, 0, "how the variance is estimated: trace, median or fit")                \
    KEY(null_draws, I, , "16384", 0, 100000000, "draws of a head's null ensemble; 0 leaves out what needs one")        \
    KEY(esd_every, I, , "0", 0, 1000000000, "steps between stored singular values; 0 is never")                        \
    KEY(when_behind, E, config_behind, "drop", 0, 0, "drop snapshots or wait when the diagnostics ranks are behind")   \
    KEY(patience, I, , "1800", 1, 1000000000, "seconds that a layer's spectra may take before they count as hung")     \
    KEY(device, E, config_device, "cpu", 0, 0, "where spectra are computed: cpu or cuda; auto is cpu")                 \
    KEY(alerts, L, , "", 0, 0, "rules on columns: tw_score > 7 for 3 snapshots then stop")

#define CONFIG_CHECKPOINT(KEY)                                                                                         \
    KEY(every, I, , "0", 0, 1000000000, "steps between checkpoints; 0 is at the end only")                             \
    KEY(keep, I, , "2", 1, 1000000, "newest checkpoints that are kept")                                                \
    KEY(keep_every, I, , "0", 0, 1000000000, "also keep each K-th step's")
