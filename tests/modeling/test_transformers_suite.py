"""transformers' own common model tests, run on Ingot.

The tests are in the library's source distribution, not in its wheel, so pip fetches them, once, into `.cache/`. A few
modules they import are not in that distribution either; stand-ins take their place, and the tests of those modules
(`generate`, exporters) are not run here: tests/modeling/test_generation.py has our own.
"""

import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import transformers

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / f"transformers-suite-{transformers.__version__}"
STAND_INS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'dtype': 'float16',\n"
        "    'chunk_size_feed_forward': 5, 'architectures': ['Model'], 'problem_type': 'regression',\n"
        "    'id2label': {0: 'label'}, 'label2id': {'label': '0'}}\n"
    ),
}
SUITE = '''
"""Ingot under the library's common tests, dense and with experts."""

import unittest

import torch
from modeling import IngotConfig, IngotForCausalLM, IngotModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from .generation.test_utils import GenerationTesterMixin
from .test_configuration_common import ConfigTester
from .test_modeling_common import ModelTesterMixin, ids_tensor
from .test_training_mixin import TrainingTesterMixin

MODEL_MAPPING_NAMES["ingot"] = "IngotModel"
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["ingot"] = "IngotForCausalLM"
DENSE = dict(
    vocab_size=99, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16)


class IngotTester:
    """What the mixins ask of a model: a configuration and inputs."""

    causal_lm_class, base_model_class, config_class = IngotForCausalLM, IngotModel, IngotConfig
    is_training, batch_size, seq_length = True, 13, 7

    def __init__(self, parent, fields):
        self.parent, self.fields = parent, fields
        self.num_hidden_layers, self.hidden_size = fields["num_hidden_layers"], fields["hidden_size"]
        self.num_attention_heads, self.vocab_size = fields["num_attention_heads"], fields["vocab_size"]

    def get_config(self):
        return IngotConfig(**self.fields)

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Common(ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin):
    all_model_classes = (IngotModel, IngotForCausalLM)
    model_tester = None

    def setUp(self):
        self.model_tester = IngotTester(self, self.fields)
        self.config_tester = ConfigTester(self, config_class=IngotConfig, **self.fields)

    def test_config(self):
        self.config_tester.run_common_tests()


class ExpertsTest(Common, unittest.TestCase):
    fields = {**DENSE, **EXPERTS}


class DenseTest(Common, unittest.TestCase):
    fields = DENSE

    def without_experts(self, *_):
        self.skipTest("dense: there are no experts")

    test_output_router_logits_from_config = without_experts
    test_eager_matches_batched_and_grouped_inference_0_fp16 = without_experts
    test_eager_matches_batched_and_grouped_inference_1_fp32 = without_experts
    test_eager_matches_batched_and_grouped_inference_2_bf16 = without_experts


class OtherPartsTest(DenseTest):
    fields = {
        **DENSE, "position_embedding_type": "learned", "norm_type": "layer_norm", "norm_position": "post",
        "hidden_act": "gelu", "mlp_gated": False, "mlp_bias": True, "attention_bias": True, "qk_norm": False,
        "tie_word_embeddings": True,
    }

    def without_rope(self, *_):
        self.skipTest("no rotary positions")

    test_model_rope_scaling_from_config_0_linear = without_rope
    test_model_rope_scaling_from_config_1_dynamic = without_rope
    test_model_rope_scaling_from_config_2_yarn = without_rope
    test_model_rope_with_partial_rotation = without_rope
'''


def fetch(folder: Path) -> None:
    """Download the source distribution and unpack its tests into `folder`."""
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    run = subprocess.run(
        [*download, "--dest", str(folder.parent), f"transformers=={transformers.__version__}"],
        capture_output=True,
        text=True,
    )
    if run.returncode:
        pytest.skip(f"the source distribution of transformers cannot be fetched: {run.stderr.strip()[-200:]}")
    archive = next(folder.parent.glob(f"transformers-{transformers.__version__}.tar.gz"))
    with tarfile.open(archive) as file:
        members = [member for member in file.getmembers() if "/tests/" in member.name and member.name.endswith(".py")]
        for member in members:
            member.name = member.name.split("/tests/")[1]
        file.extractall(folder, members=members, filter="data")


@pytest.fixture(scope="module")
def suite() -> Path:
    """The folder with the library's tests, the stand-ins and Ingot's test classes."""
    folder = CACHE / "suite"
    if not (folder / "test_modeling_common.py").exists():
        folder.mkdir(parents=True, exist_ok=True)
        fetch(folder)
    for name, content in STAND_INS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    (folder / "test_ingot.py").write_text(SUITE)
    (CACHE / "pytest.ini").write_text("[pytest]\n")  # some of the tests start pytest again: not with our settings
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["DenseTest", "ExpertsTest", "OtherPartsTest"])
def test_common_model_tests(suite: Path, name: str) -> None:
    report = suite.parent / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", f"suite/test_ingot.py::{name}"]
    run = subprocess.run(command, cwd=suite.parent, capture_output=True, text=True)
    counts = ElementTree.parse(report).getroot()[0].attrib
    passed = int(counts["tests"]) - int(counts["skipped"]) - int(counts["failures"]) - int(counts["errors"])
    print(f"{name}: {passed} passed, {counts['skipped']} skipped, {counts['failures']} failed")
    assert run.returncode == 0, run.stdout[-6000:]
    assert passed > 100
