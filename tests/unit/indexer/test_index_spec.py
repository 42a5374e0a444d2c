"""How collections hold their vectors: what is written on them, what is refused, how wide is searched."""

import re
from typing import Any

import numpy as np
import pytest

from indexer.index_spec import FORMAT, IndexSpec
from indexer.milvus import refusal
from indexer.mips_to_l2 import inner_products, lift, lift_queries, longest_of, radius_for
from indexer.schema import is_stored_name, stored_name
from infra.platform.settings import Milvus, SettingsError, load_settings

HNSW, IVF = Milvus(index_type="HNSW"), Milvus(index_type="IVF_FLAT", ivf_nlist=64, ivf_nprobe=48)
SCANN = Milvus(index_type="SCANN", ivf_nlist=128, scann_reorder_per_hit=3)


@pytest.mark.parametrize("milvus", [Milvus(), HNSW, IVF, SCANN])
def test_what_is_written_on_a_collection_is_read_again(milvus: Milvus) -> None:
    spec = IndexSpec.of_new(milvus, longest=3.0, rows=10)
    assert IndexSpec.of(spec.properties() | {"nextwatch.mark": "whole"}) == spec
    assert spec.format == FORMAT


def test_only_flat_collections_hold_vectors_as_they_are() -> None:
    for kind in ("FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8", "SCANN"):
        spec = IndexSpec.of_new(Milvus(index_type=kind), longest=3.0, rows=10)
        assert (spec.metric, spec.radius) == (("IP", 0.0) if kind == "FLAT" else ("L2", 6.0))


@pytest.mark.parametrize(("radius", "kind"), [("0.0", "FLAT"), ("6.0", "HNSW")])
def test_a_collection_of_an_older_version_is_known_for_one(radius: str, kind: str) -> None:
    assert IndexSpec.of({"nextwatch.radius": radius}) == IndexSpec(kind, float(radius), format=1)
    assert IndexSpec.of({}).format < FORMAT


def test_parameters_reach_both_kinds_of_milvus() -> None:
    """Milvus Lite reads those that stand in a text of their own, and passes over all others."""
    [index] = IndexSpec.of_new(HNSW, longest=1.0, rows=1).description(HNSW)
    assert index.get_index_configs() == {
        "index_type": "HNSW",
        "metric_type": "L2",
        "params": {"M": 32, "efConstruction": 400},
    }
    [index] = IndexSpec.of_new(SCANN, longest=1.0, rows=1).description(SCANN)
    assert index.get_index_configs()["params"] == {"nlist": 128, "with_raw_data": True}
    [index] = IndexSpec.of_new(Milvus(), longest=1.0, rows=1).description(Milvus())
    assert index.get_index_configs() == {"index_type": "FLAT", "metric_type": "IP"}


@pytest.mark.parametrize("per_hit", [1, 4, 1000])
@pytest.mark.parametrize("limit", [1, 64, 500, 16384])
def test_ef_is_never_below_the_limit(per_hit: int, limit: int) -> None:
    milvus = HNSW.model_copy(update={"hnsw_ef_per_hit": per_hit})
    found = IndexSpec("HNSW", 6.0).search_parameters(milvus, limit, filtered=False)
    assert limit <= found["ef"] <= 32768


@pytest.mark.parametrize(("rows", "filtered", "lists"), [(4000, False, 48), (3999, False, 64), (4000, True, 64)])
def test_all_lists_are_searched_where_hits_may_lie_in_all(rows: int, filtered: bool, lists: int) -> None:
    spec = IndexSpec.of_new(IVF, longest=1.0, rows=rows)
    assert spec.search_parameters(IVF, 500, filtered=filtered) == {"nprobe": lists}


@pytest.mark.parametrize(("rows", "lists"), [(4000, 56), (3999, 128)])
def test_scann_looks_again_at_more_than_it_is_asked_for(rows: int, lists: int) -> None:
    spec = IndexSpec.of_new(SCANN, longest=1.0, rows=rows)
    assert spec.search_parameters(SCANN, 500, filtered=False) == {"nprobe": lists, "reorder_k": 1500}


def test_a_collection_with_fewer_lists_than_the_setting_is_searched_in_those_it_has() -> None:
    assert IndexSpec("IVF_FLAT", 6.0, nlist=16, rows=9999).search_parameters(IVF, 500, filtered=False) == {"nprobe": 16}


@pytest.mark.parametrize("kind", ["IVF_PQ", "HNSW_PQ", "HNSW_SQ", "DISKANN", "AUTOINDEX"])
def test_an_index_type_that_is_not_to_be_trusted_is_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(SettingsError, match=f"milvus.index_type.*{kind} is refused: .+; take FLAT, HNSW or IVF_FLAT"):
        load_settings(overrides={"milvus.index_type": kind})


ON_A_SERVER = [
    ({"index_type": "SCANN"}, r"milvus\.index_type: .+ searches row by row"),
    ({"index_type": "IVF_SQ8"}, r"milvus\.index_type: .+ less than \.99"),
    ({"shards": 2}, r"milvus\.shards"),
    ({"replicas": 2, "mmap": True}, r"milvus\.replicas and milvus\.mmap"),
]


@pytest.mark.parametrize(("values", "reason"), ON_A_SERVER)
def test_what_milvus_lite_would_pass_over_is_refused_where_it_is_the_milvus(
    values: dict[str, Any], reason: str
) -> None:
    overrides = {f"milvus.{name}": value for name, value in values.items()}
    with pytest.raises(SettingsError, match=f"^setting {reason}.*NEXTWATCH_MILVUS__URI"):
        load_settings(overrides=overrides)
    asked = load_settings(overrides=overrides | {"milvus.uri": "http://milvus:19530"}).milvus
    assert re.match(f"setting {reason}", refusal(asked, "milvus_lite-3.2.2"))
    assert refusal(asked, "v2.6.9") == ""


@pytest.mark.parametrize("version", ["v2.2.16", "2.2.0-lite", "v1.1"])
def test_what_a_server_is_too_old_for_is_refused_with_its_version(version: str) -> None:
    for asked, name in ((Milvus(index_type="SCANN"), "index_type: SCANN"), (Milvus(mmap=True), "mmap")):
        assert refusal(asked, version) == f"setting milvus.{name} needs a server of 2.3 or later, this is {version}"
        assert refusal(asked, "v2.3.0") == refusal(asked, "v10.0") == refusal(asked, "master-20260101") == ""
    assert refusal(Milvus(index_type="IVF_SQ8", shards=2, replicas=2), version) == ""


@pytest.mark.parametrize("prefix", ["", "items", "items_b_", "_", "2_", "a-b_", "é_"])
def test_no_prefix_is_the_beginning_of_another(prefix: str) -> None:
    with pytest.raises(SettingsError, match=r"milvus\.collection_prefix"):
        load_settings(overrides={"milvus.collection_prefix": prefix})


def test_names_of_other_prefixes_are_not_ours() -> None:
    for prefix in ("items_", "staging_", "item_"):
        others = {"items_", "staging_", "item_"} - {prefix}
        assert is_stored_name(prefix, stored_name(prefix, "20260101_ab"))
        assert not any(is_stored_name(other, stored_name(prefix, "20260101_ab")) for other in others)
    assert not is_stored_name("items_", "items_backup")


@pytest.mark.parametrize("kind", ["flat", "", "TREE", 5])
def test_an_unknown_index_type_is_refused(kind: Any) -> None:
    with pytest.raises(SettingsError, match=r"milvus\.index_type"):
        load_settings(overrides={"milvus.index_type": kind})


def vectors(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)


def test_the_nearest_lifted_vectors_are_those_with_the_largest_inner_products() -> None:
    items, queries = vectors(50, 0), vectors(4, 1)
    radius = radius_for(longest_of(items))
    lifted = lift(items, radius)
    np.testing.assert_allclose(np.linalg.norm(lifted, axis=1), radius, rtol=1e-5)
    for query, lifted_query in zip(queries, lift_queries(queries), strict=True):
        squared = np.square(lifted - lifted_query).sum(axis=1)
        np.testing.assert_allclose(inner_products(squared, query, radius), items @ query, atol=1e-4)
        assert np.argmin(squared) == np.argmax(items @ query)


def test_a_vector_beyond_the_sphere_stays_finite_and_keeps_its_own_numbers() -> None:
    lifted = lift(np.array([[30.0, 40.0]], np.float32), radius=10.0)
    assert lifted.tolist() == [[30.0, 40.0, 0.0]]


def test_lengths_by_hand() -> None:
    assert longest_of(np.array([[3.0, 4.0], [1.0, 0.0]], np.float32)) == 5.0
    assert longest_of(np.zeros((0, 2), np.float32)) == 0.0
    assert radius_for(5.0) == 10.0
    assert radius_for(0.0) == 2.0
