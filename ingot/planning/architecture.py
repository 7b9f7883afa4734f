"""What a decoder-only language model is made of, in numbers: the description that every estimate starts from.

An Ingot model is described from its configuration alone. Any other model of transformers is built on the meta device,
which takes no memory, and read: its parameters are counted and not guessed (`ingot.planning.inspect_model`).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

Part = Literal["attention", "feed_forward", "shared_experts", "experts", "router"]


@dataclass(frozen=True)
class Matrix:
    """A linear projection of a layer. Of an expert's, `copies` exist and a token meets `active` of them.

    `repeated`: an earlier layer has the same weights, and counts them. `recurrent`: of a recurrent or convolutional
    mixer, which has no attention scores.
    """

    part: Part
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    active: int = 1
    repeated: bool = False
    recurrent: bool = False

    @property
    def parameters(self) -> int:
        """Parameters of all copies; none when an earlier layer counts them."""
        return 0 if self.repeated else self.copies * (self.inputs + self.bias) * self.outputs

    @property
    def idle_parameters(self) -> int:
        """Parameters of the copies that a token does not meet."""
        return 0 if self.repeated else (self.copies - self.active) * (self.inputs + self.bias) * self.outputs

    @property
    def component(self) -> str:
        """The component that its parameters and FLOPs are shown under."""
        return "recurrent" if self.recurrent else self.part

    @property
    def products(self) -> int:
        """Multiplications that one token costs."""
        return self.active * self.inputs * self.outputs


@dataclass(frozen=True)
class Layer:
    """One block: its projections, its vectors, and the shapes of its attention and feed-forward."""

    matrices: tuple[Matrix, ...]
    vector_parameters: int  # of norms, and whatever else is no matrix
    num_heads: int  # 0: no attention scores
    num_key_value_heads: int  # 0: nothing to cache
    qk_head_dim: int
    v_head_dim: int
    ffn_width: int  # inside the feed-forward, over all experts that one token meets
    gated: bool = True
    qk_norm: bool = False
    window: int | None = None  # tokens that a sliding layer sees; None: all
    convolutions: int = 0  # weights of convolutions along the sequence: a token meets each once
    latent_values: int = 0  # of multi-head latent attention: values a token that a cache could keep instead

    @property
    def kind(self) -> Literal["dense", "moe"]:
        """Whether the feed-forward is a mixture of experts."""
        return "moe" if any(m.part == "experts" for m in self.matrices) else "dense"

    @property
    def num_experts(self) -> int:
        """Routed experts; 0 in a dense layer."""
        return max((m.copies for m in self.matrices if m.part == "experts"), default=0)

    @property
    def experts_per_token(self) -> int:
        """Routed experts that a token meets; 0 in a dense layer."""
        return max((m.active for m in self.matrices if m.part == "experts"), default=0)


@dataclass(frozen=True)
class Architecture:
    """A decoder-only model: its tables, its layers and its head."""

    model_type: str
    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    tied: bool  # the head is the token table
    position_parameters: int = 0  # table of learned positions
    other_parameters: int = 0  # the last norm, and what else stands outside the layers
    buffers: int = 0  # persistent values that are not parameters, such as DeepSeek-V3's router biases
    head_parameters: int | None = None  # of an untied head; None: as large as the token table
    other_embeddings: int = 0  # tables beside the token table and positions: looked up, not multiplied
    outside_projections: int = 0  # of matrices outside the layers that every token meets
    towers: int = 0  # what a text token does not meet: a vision tower, an audio tower
    notes: tuple[str, ...] = ()  # what the numbers leave out

    @property
    def num_layers(self) -> int:
        """Blocks."""
        return len(self.layers)

    @cached_property
    def kinds(self) -> list[tuple[Layer, int]]:
        """Each different layer with the number of times that it stands in the model."""
        counts = Counter(map(id, self.layers))
        return [(layer, counts[key]) for key, layer in {id(layer): layer for layer in self.layers}.items()]

    @property
    def input_embedding(self) -> int:
        """Parameters of the token table."""
        return self.vocab_size * self.hidden_size

    @property
    def head(self) -> int:
        """Parameters that only the head has: none when it is tied."""
        if self.tied:
            return 0
        return self.input_embedding if self.head_parameters is None else self.head_parameters

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Parameters by component, empty ones left out; they add up to `total`."""
        counts = Counter({"embedding": self.input_embedding, "positions": self.position_parameters})
        for layer, times in self.kinds:
            counts["norms"] += times * layer.vector_parameters
            counts["recurrent"] += times * layer.convolutions
            for matrix in layer.matrices:
                counts[matrix.component] += times * matrix.parameters
        counts["norms"] += self.other_parameters
        counts["head"] = self.head
        counts["other_embeddings"] = self.other_embeddings
        counts["other"] = self.outside_projections + self.towers
        tables = ("embedding", "positions", "other_embeddings")
        parts = ("attention", "recurrent", "feed_forward", "shared_experts", "experts", "router")
        return {name: counts[name] for name in (*tables, *parts, "norms", "head", "other") if counts[name]}

    @cached_property
    def total(self) -> int:
        """All parameters, a tied table once: what `model.num_parameters()` says."""
        return sum(self.parameters.values())

    @cached_property
    def active(self) -> int:
        """Parameters that a text token meets: all but the experts that it is not sent to, and other towers."""
        idle = sum(times * m.idle_parameters for layer, times in self.kinds for m in layer.matrices)
        return self.total - idle - self.towers

    @cached_property
    def multiplied(self) -> int:
        """N of the FLOPs conventions: the active parameters without other tables; a block is counted at every use."""
        repeats = sum(times * m.products for layer, times in self.kinds for m in layer.matrices if m.repeated)
        return self.active - self.other_embeddings + repeats


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The numbers that describe a decoder of Ingot's kind, with IngotConfig's names.

    `norm_vectors`: 1 for RMSNorm, 2 for LayerNorm with bias. `windows` and `sparse_layers` have a value for each
    layer, or none.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool = False
    qk_norm: bool = True
    attention_bias: bool = False
    mlp_gated: bool = True
    mlp_bias: bool = False
    norm_vectors: int = 1
    final_norm: bool = True
    position_rows: int = 0
    windows: Sequence[int | None] = ()
    sparse_layers: Sequence[bool] = ()
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0

    def architecture(self) -> Architecture:
        """The whole model."""
        sparse = self.sparse_layers or [self.num_experts > 0] * self.num_hidden_layers
        kinds = list(zip(sparse, self.windows or [None] * self.num_hidden_layers, strict=True))
        layers = {kind: self._layer(*kind) for kind in set(kinds)}
        return Architecture(
            model_type="ingot",
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            layers=tuple(layers[kind] for kind in kinds),
            tied=self.tie_word_embeddings,
            position_parameters=self.position_rows * self.hidden_size,
            other_parameters=self.norm_vectors * self.hidden_size if self.final_norm else 0,
        )

    def _layer(self, is_sparse: bool, window: int | None) -> Layer:
        experts_width = self.num_experts_per_tok * self.moe_intermediate_size + self.shared_expert_intermediate_size
        norms = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        return Layer(
            matrices=(*self._attention(), *(self._experts() if is_sparse else self._dense())),
            vector_parameters=self.norm_vectors * norms,
            num_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            qk_head_dim=self.head_dim,
            v_head_dim=self.head_dim,
            ffn_width=experts_width if is_sparse else self.intermediate_size,
            gated=is_sparse or self.mlp_gated,
            qk_norm=self.qk_norm,
            window=window,
        )

    def _attention(self) -> Iterator[Matrix]:
        """Projections to queries, keys and values, and of the output."""
        queries, groups = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        for outputs in (queries, groups, groups):
            yield Matrix("attention", self.hidden_size, outputs, self.attention_bias)
        yield Matrix("attention", queries, self.hidden_size, self.attention_bias)

    def _dense(self) -> Iterator[Matrix]:
        yield from feed_forward(
            "feed_forward", self.hidden_size, self.intermediate_size, self.mlp_gated, self.mlp_bias
        )

    def _experts(self) -> Iterator[Matrix]:
        """Router, the stacked experts, and the shared expert with its gate."""
        width = self.moe_intermediate_size
        yield Matrix("router", self.hidden_size, self.num_experts)
        for inputs, outputs in ((self.hidden_size, 2 * width), (width, self.hidden_size)):
            yield Matrix("experts", inputs, outputs, copies=self.num_experts, active=self.num_experts_per_tok)
        if self.shared_expert_intermediate_size:
            yield from feed_forward("shared_experts", self.hidden_size, self.shared_expert_intermediate_size, True)
            yield Matrix("router", self.hidden_size, 1)


def feed_forward(part: Part, hidden_size: int, width: int, gated: bool, bias: bool = False) -> tuple[Matrix, ...]:
    """The projections of a feed-forward: gate (where there is one), up, down."""
    into = Matrix(part, hidden_size, width, bias)
    return (*([into] if gated else []), into, Matrix(part, width, hidden_size, bias))


def architecture_of_config(config: Any) -> Architecture:
    """Describes the model of a configuration: closed form for an IngotConfig, a count on the meta device for others.

    Raises: InputError when it is not a decoder-only language model.
    """
    if config.model_type != "ingot":
        from ingot.planning.inspect_model import count

        return count(config)
    num_layers = config.num_hidden_layers
    learned = config.position_embedding_type == "learned"
    return Sizes(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=config.tie_word_embeddings,
        qk_norm=config.qk_norm,
        attention_bias=config.attention_bias,
        mlp_gated=config.mlp_gated,
        mlp_bias=config.mlp_bias,
        norm_vectors=2 if config.norm_type == "layer_norm" else 1,
        final_norm=config.norm_position == "pre",
        position_rows=config.max_position_embeddings if learned else 0,
        windows=[config.sliding_window if t == "sliding_attention" else None for t in config.layer_types],
        sparse_layers=[config.is_sparse_layer(i) for i in range(num_layers)],
        num_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok or 0,
        moe_intermediate_size=config.moe_intermediate_size or 0,
        shared_expert_intermediate_size=config.shared_expert_intermediate_size,
    ).architecture()
