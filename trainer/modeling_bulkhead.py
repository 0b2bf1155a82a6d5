"""The exported mla-prerope model for Hugging Face's transformers: AutoModelForCausalLM.from_pretrained(FOLDER,
trust_remote_code=True). Needs PyTorch; generation computes the whole text again for each token.

Rotary comes before compression. source "key": k0 = RoPE(x W_K), v0 = x W_V, c = k0 W_DK + v0 W_DV; "hidden":
c = RoPE(x) W_D, x rotated head by head. Then [k | v] = RMSNorm(c) [W_UK | W_UV] and q = RoPE(x W_Q).
"""
import torch
from torch import nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput


class BulkheadPreropeConfig(PretrainedConfig):
    model_type = "bulkhead_prerope"

    def __init__(self, vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
                 num_attention_heads=12, num_key_value_heads=None, head_dim=64, kv_lora_rank=256, latent_norm=True,
                 prerope_source="key", max_position_embeddings=1024, rms_norm_eps=1e-6, rope_theta=10000.0, **others):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim
        self.kv_lora_rank = kv_lora_rank
        self.latent_norm = latent_norm
        self.prerope_source = prerope_source
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        others.pop("rope_parameters", None)
        super().__init__(**others)


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotate(x, angles):
    """x [B, heads, T, D], angles [T, D/2]: the pairs are (j, j + D/2)."""
    cos, sin = angles.cos(), angles.sin()
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads, self.dim = config.num_attention_heads, config.head_dim
        width, latent, all_heads = config.hidden_size, config.kv_lora_rank, config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(width, all_heads, bias=False)
        self.of_hidden = config.prerope_source == "hidden"
        if self.of_hidden:
            self.down_proj = nn.Linear(width, latent, bias=False)
        else:
            self.k_proj = nn.Linear(width, all_heads, bias=False)
            self.v_proj = nn.Linear(width, all_heads, bias=False)
            self.k_down_proj = nn.Linear(all_heads, latent, bias=False)
            self.v_down_proj = nn.Linear(all_heads, latent, bias=False)
        self.latent_layernorm = RMSNorm(latent, config.rms_norm_eps) if config.latent_norm else None
        self.k_up_proj = nn.Linear(latent, all_heads, bias=False)
        self.v_up_proj = nn.Linear(latent, all_heads, bias=False)
        self.o_proj = nn.Linear(all_heads, width, bias=False)

    def split(self, x):
        return x.view(*x.shape[:2], self.heads, self.dim).transpose(1, 2)

    def join(self, x):
        return x.transpose(1, 2).flatten(2)

    def forward(self, x, angles, mask):
        if self.of_hidden:
            latent = self.down_proj(self.join(rotate(self.split(x), angles)))
        else:
            keys = self.join(rotate(self.split(self.k_proj(x)), angles))
            latent = self.k_down_proj(keys) + self.v_down_proj(self.v_proj(x))
        if self.latent_layernorm is not None:
            latent = self.latent_layernorm(latent)
        q = rotate(self.split(self.q_proj(x)), angles)
        k, v = self.split(self.k_up_proj(latent)), self.split(self.v_up_proj(latent))
        return self.o_proj(self.join(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, angles, mask):
        x = x + self.self_attn(self.input_layernorm(x), angles, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class BulkheadPreropePreTrainedModel(PreTrainedModel):
    config_class = BulkheadPreropeConfig
    base_model_prefix = "model"
    _supports_sdpa = True


class BulkheadPreropeModel(BulkheadPreropePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        length, half, device = input_ids.shape[1], self.config.head_dim // 2, input_ids.device
        powers = self.config.rope_theta ** (-torch.arange(half, device=device, dtype=torch.float64) / half)
        angles = (torch.arange(length, device=device, dtype=torch.float64)[:, None] * powers).float()
        mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
        if attention_mask is not None and attention_mask.dim() == 2:
            # a token that is padding sees itself, so that no row is empty
            mask = mask & attention_mask[:, None, None, :length].bool() | torch.eye(length, dtype=torch.bool, device=device)
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, angles, mask)
        return self.norm(x)


class BulkheadPreropeForCausalLM(BulkheadPreropePreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = BulkheadPreropeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **others):
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids, attention_mask=None, labels=None, **others):
        logits = self.lm_head(self.model(input_ids, attention_mask))
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)
