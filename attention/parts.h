/* Parts that the variants share; private to attention/. Dimensions as in attention.h. */
#pragma once

#include "attention/attention.h"

/* Weights first .. first + count - 1, stored one behind the other (param_spec.joined), as one operand. */
tensor attn_joined(const tensor *weights, int first, int count);

/* Rotates whole heads of dims->rotary columns each: `heads` of them from column `first` of x on. */
void attn_rotate(attn_env *env, tensor x, int64_t first, int heads, bool inverse);

/* Rotates the last D_r columns of each block of D_n + D_r (queries), or x itself (the shared key) when heads is 1. */
void attn_rotate_tail(attn_env *env, tensor x, int heads, bool inverse);

/* normed = RMSNorm(latent); a copy where the config has no latent norm: then rstd is not written and gain not read. */
void attn_latent_forward(attn_env *env, tensor normed, float *rstd, tensor latent, tensor gain);

/* dlatent (overwritten) from dnormed; adds to dgain. */
void attn_latent_backward(attn_env *env, tensor dlatent, tensor dnormed, tensor latent, const float *rstd, tensor gain,
                          tensor dgain);

/* The core's arguments but for its operands. */
attn_core_args attn_core_for(const attn_env *env);

/* The same for n rows of one sample from position `first` on, which is where env's rows begin (attn_env_at). */
attn_core_args attn_core_at(const attn_env *env, int64_t first, int64_t n);

/* env for rows of one sample that begin at that position. */
attn_env attn_env_at(const attn_env *env, int64_t first);

/* Room from scratch for all that the variant's forward pass of n tokens leaves. */
attn_saved attn_saved_room(const attn_env *env, const attn_variant *v, int64_t n, arena *scratch);

/* Rows of the cache from `first` on, columns from `col` on, become x. */
void attn_cache_put(attn_env *env, tensor cache, int64_t first, int64_t col, tensor x);

/* The rest of a forward pass: the core over its operands, and out = o W_Ot; see attn_variant.forward. */
void attn_finish(attn_env *env, const attn_core_args *args, tensor w_o, const tensor *out, bool again, arena *scratch);

/* The core's backward pass, counted and profiled as its forward pass is in attn_finish. */
void attn_core_backward(attn_env *env, const attn_core_args *args, const attn_core_grads *grads, arena *scratch);

/* Specifications that every variant lists. */
param_spec attn_spec_rows(const attn_dims *d, const char *name, int64_t rows, int64_t cols, bool joined);
param_spec attn_spec_out(const attn_dims *d);
param_spec attn_spec_partial(const attn_dims *d, const char *name, int64_t rows, int64_t cols);
param_spec attn_spec_gain(const char *name, int64_t cols, bool partial);
