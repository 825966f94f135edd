"""Engines that are damaged or of older weights: every command says which, why, and what makes them again."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgevqa.runtime.bundle import Bundle
from edgevqa.runtime.bundle_writer import BundleWriter
from edgevqa.runtime.engines import FORMAT, EngineRecord, GraphEngine, decode_record, encode_record
from edgevqa.runtime.hashing import sha256_bytes
from edgevqa.runtime.manifest import EngineSet

Invoke = Callable[..., tuple[int, str, str]]
KEY = "server-trt10/fp32"
VERSION = (10, 3, 0, 30)
PLAN = b"ftrt" + bytes(20) + bytes(VERSION) + bytes(472)


@pytest.fixture
def with_engines(fake_bundle: Bundle) -> Bundle:
    """With an engine of every fp32 graph, and with a blank in the bundle's name."""
    root = fake_bundle.root.rename(fake_bundle.root.with_name("my bundle"))
    bundle = Bundle.open(root)
    spec = bundle.variant("fp32")
    assert spec.weights is not None
    graphs = {
        name: GraphEngine(
            file=f"{name}.engine",
            sha256=sha256_bytes(PLAN),
            size_bytes=len(PLAN),
            onnx_sha256=graph.file.sha256,
            weights_sha256=spec.weights.sha256,
            profiles=[],
            inputs=[],
            outputs=[],
            high_layers=[],
            seconds=1.0,
            peak_memory_mb=1.0,
        )
        for name, graph in spec.graphs.items()
    }
    record = EngineRecord(
        format=FORMAT,
        target="server-trt10",
        variant="fp32",
        precision="fp32",
        numerics="fp32",
        flavour="tensorrt",
        tensorrt_version=VERSION,
        os=platform.system().lower(),
        arch=platform.machine(),
        device=None,
        compute_capabilities=[],
        hardware_compatibility="none",
        version_compatible=False,
        weight_stripped=False,
        refittable=False,
        dla_core=None,
        driver=None,
        jetpack=None,
        l4t=None,
        calibration_sha256=None,
        options={},
        graphs=graphs,
    )
    with BundleWriter.extend(bundle) as writer:
        entry = EngineSet(
            target=record.target,
            variant="fp32",
            record=writer.add_bytes(encode_record(record), f"engines/{KEY}/engine.json"),
            engines={name: writer.add_bytes(PLAN, f"engines/{KEY}/{name}.engine") for name in graphs},
        )
        return writer.finish(msgspec.structs.replace(bundle.manifest, engines={KEY: entry}))


def missing(path: Path) -> None:
    path.unlink()


def changed(path: Path) -> None:
    """As long as before, and of another inode: writing into it would change a hard link of another bundle."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"y")


def again(bundle: Bundle) -> str:
    return f"edgevqa build '{bundle.root}' --target server-trt10 --precision fp32"


def new_weights(bundle: Bundle, name: str = "fp32", data: bytes = b"new") -> Bundle:
    """The bundle with other weights in one variant, and all else as it was."""
    with BundleWriter.extend(bundle) as writer:
        file = writer.add_bytes(data, f"graphs/{name}/weights.data")
        spec = msgspec.structs.replace(bundle.variant(name), weights=file)
        variants = {**bundle.manifest.variants, name: spec}
        return writer.finish(msgspec.structs.replace(bundle.manifest, variants=variants))


@pytest.mark.parametrize("damage", [missing, changed])
def test_verify_names_the_cure_of_each_file(
    invoke: Invoke, with_engines: Bundle, damage: Callable[[Path], None]
) -> None:
    damage(with_engines.root / f"engines/{KEY}/projector.engine")
    code, _, err = invoke("bundle", "verify", with_engines.root)
    assert code == 1
    assert (
        f"1 of 11 files failed: engines/{KEY}/projector.engine. Build the engines again: {again(with_engines)}" in err
    )
    assert "Copy the bundle" not in err
    (with_engines.root / "tokenizer.json").unlink()
    code, out, err = invoke("bundle", "verify", with_engines.root, "--json")
    assert code == 1
    assert "Copy the bundle again, or export it again.\nBuild the engines again: " in err
    cures = {row["path"]: row["cure"] for row in json.loads(out)["files"] if row["cure"]}
    assert cures == {
        "tokenizer.json": "Copy the bundle again, or export it again.",
        f"engines/{KEY}/projector.engine": f"Build the engines again: {again(with_engines)}",
    }


@pytest.mark.parametrize("damage", [missing, changed])
def test_pack_says_what_it_leaves_out_and_what_it_packs_unpacks(
    invoke: Invoke, with_engines: Bundle, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(with_engines.root / f"engines/{KEY}/projector.engine")
    code, _, err = invoke("bundle", "pack", with_engines.root, "-o", tmp_path / "x.tar")
    assert code == 0
    assert err.startswith(f"warning: Left out: The engines '{KEY}' of {with_engines.root} are damaged: ")
    assert f"engines/{KEY}/projector.engine " in err
    assert again(with_engines) in err
    code, out, _ = invoke("bundle", "pack", with_engines.root, "-o", tmp_path / "y.tar", "--json")
    assert (code, len(json.loads(out)["left_out"])) == (0, 1)
    code, _, err = invoke("bundle", "unpack", tmp_path / "x.tar", "-o", tmp_path / "copy")
    assert (code, err) == (0, "")
    unpacked = Bundle.open(tmp_path / "copy")
    assert unpacked.manifest.engines == {}
    assert all(report.status == "ok" for report in unpacked.verify())


def test_inspect_names_the_damaged_file(invoke: Invoke, with_engines: Bundle) -> None:
    assert json.loads(invoke("inspect", with_engines.root, "--json")[1])["damaged_engines"] == {}
    hit = with_engines.root / f"engines/{KEY}/projector.engine"
    hit.unlink()
    told = f"The engines '{KEY}' of {with_engines.root} are damaged: {hit} is missing"
    code, out, err = invoke("inspect", with_engines.root)
    assert (code, err) == (0, "")
    assert told in out
    assert again(with_engines) in out
    found = json.loads(invoke("inspect", with_engines.root, "--json")[1])
    assert found["damaged_engines"][KEY].startswith(told)


def test_inspect_of_a_bundle_looks_at_sizes_and_verify_at_every_byte(invoke: Invoke, with_engines: Bundle) -> None:
    changed(with_engines.root / f"engines/{KEY}/projector.engine")
    assert json.loads(invoke("inspect", with_engines.root, "--json")[1])["damaged_engines"] == {}
    assert invoke("bundle", "verify", with_engines.root)[0] == 1


def test_a_record_that_was_changed_is_told_and_the_rest_is_shown(invoke: Invoke, with_engines: Bundle) -> None:
    changed(with_engines.root / f"engines/{KEY}/engine.json")
    code, out, err = invoke("inspect", with_engines.root)
    assert (code, err) == (0, "")
    assert "engine.json has SHA-256" in out
    assert again(with_engines) in out
    assert KEY in json.loads(invoke("inspect", with_engines.root, "--json")[1])["stale_engines"]


def test_damaged_engines_do_not_stop_what_adds_to_the_bundle(with_engines: Bundle) -> None:
    """Else they could not be built again either: adding checks every file."""
    changed(with_engines.root / f"engines/{KEY}/projector.engine")
    bundle = Bundle.open(with_engines.root)
    assert bundle.left_out() == {}
    added = new_weights(bundle, "fp16")
    assert bundle.left_out()[KEY].startswith("Left out: The engines ")
    assert added.manifest.engines == {}
    assert all(report.status == "ok" for report in added.verify())


def test_engines_of_older_weights_are_told(invoke: Invoke, with_engines: Bundle) -> None:
    folder = with_engines.root / f"engines/{KEY}"
    told = f"were built from other graphs or weights than variant 'fp32' of {folder.parents[2]}"
    paths = (with_engines.root, folder / "engine.json", folder / "projector.engine")
    new_weights(with_engines, "fp16")
    for path in paths:
        code, out, err = invoke("inspect", path)
        assert (code, err, told in out) == (0, "", False), "what changed is another variant"
    new_weights(Bundle.open(with_engines.root))
    code, out, err = invoke("inspect", with_engines.root)
    assert (code, err) == (0, "")
    assert told in out
    assert again(with_engines) in out
    assert list(json.loads(invoke("inspect", with_engines.root, "--json")[1])["stale_engines"]) == [KEY]
    for path in paths[1:]:
        code, out, err = invoke("inspect", path)
        assert code == 1
        assert told in err
        assert again(with_engines) in err
        code, out, _ = invoke("inspect", path, "--json")
        assert (code, told in json.loads(out)["stale"]) == (1, True)
    code, out, err = invoke("bundle", "pack", with_engines.root, "-o", folder.parents[2].parent / "x.tar", "--json")
    assert (code, told in json.loads(out)["stale"][0]) == (0, True)
    assert told in err


def test_an_engine_that_is_missing_or_of_another_machine_is_built_again_in_its_bundle(
    invoke: Invoke, with_engines: Bundle
) -> None:
    path = with_engines.root / f"engines/{KEY}/engine.json"
    record = decode_record(path.read_bytes(), where="it")
    path.unlink()  # a hard link of another bundle's may be the same file
    path.write_bytes(encode_record(msgspec.structs.replace(record, arch="vax")))
    (path.parent / "projector.engine").unlink()
    code, _, err = invoke("inspect", path)
    assert (code, err.count(again(with_engines))) == (1, 2)
    assert "this is" in err


def test_an_engine_record_is_found_in_its_bundle_from_within(
    invoke: Invoke, with_engines: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_weights(with_engines)
    monkeypatch.chdir(with_engines.root / f"engines/{KEY}")
    code, _, err = invoke("inspect", "engine.json")
    assert (code, again(with_engines) in err) == (1, True)


def test_an_engine_record_is_found_in_its_bundle_on_any_way(
    invoke: Invoke, with_engines: Bundle, tmp_path: Path
) -> None:
    """The folder of the bundle is the third above what the path leads to, not above what was typed."""
    new_weights(with_engines)
    link = tmp_path / "link"
    link.symlink_to(with_engines.root / f"engines/{KEY}")
    ways = (link, with_engines.root / f"engines/{KEY}/../fp32", link / ".." / "fp32")
    for path in (way / name for way in ways for name in ("engine.json", "projector.engine")):
        code, _, err = invoke("inspect", path)
        assert (code, again(with_engines) in err) == (1, True), path


def test_engines_of_a_graph_that_changed_are_told_by_its_name(invoke: Invoke, with_engines: Bundle) -> None:
    with BundleWriter.extend(with_engines) as writer:
        spec = with_engines.variant("fp32")
        graph = msgspec.structs.replace(
            spec.graphs["projector"], file=writer.add_bytes(b"new", "graphs/fp32/projector.onnx")
        )
        spec = msgspec.structs.replace(spec, graphs={**spec.graphs, "projector": graph})
        writer.finish(msgspec.structs.replace(with_engines.manifest, variants={"fp32": spec}))
    folder = with_engines.root / f"engines/{KEY}"
    assert "The engines for server-trt10 (projector) were built" in invoke("inspect", folder / "engine.json")[2]
    assert invoke("inspect", folder / "projector.engine")[0] == 1
    assert invoke("inspect", folder / "vision_trunk.engine")[0] == 0


def test_engines_of_a_variant_that_is_gone_are_told(invoke: Invoke, with_engines: Bundle) -> None:
    with BundleWriter.extend(with_engines) as writer:
        variants = {"fp16": with_engines.variant("fp16")}
        writer.finish(msgspec.structs.replace(with_engines.manifest, variants=variants))
    code, out, _ = invoke("inspect", with_engines.root)
    assert code == 0
    assert f"are of variant 'fp32', which {with_engines.root} no longer has" in out
