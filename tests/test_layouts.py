"""Joint layouts: trees from one table, left and right alike, names in their makers' order, and mappings by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from c2vl_manifests.errors import C2VLError, ConfigError
from c2vl_manifests.layouts import KINECT_V1, KINECT_V2, LAYOUTS, Layout, load_layout, parse_layout
from c2vl_manifests.recipe import InputConfig, Recipe
from c2vl_pipeline.engines.posecode import roles
from c2vl_pipeline.readers.arrays import read_array
from c2vl_pipeline.stages import pack
from c2vl_training.augmentation import draw
from c2vl_training.dataset import Clips, Packed
from c2vl_training.encoders import ENCODERS, build
from c2vl_training.encoders.graph import adjacency
from conftest import run_factory

ALL = list(LAYOUTS.values())
EACH = pytest.mark.parametrize("layout", ALL, ids=lambda layout: layout.name)

COCO = (
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle"
)
MEDIAPIPE = (
    "nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear "
    "mouth_left mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky "
    "right_pinky left_index right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle "
    "right_ankle left_heel right_heel left_foot_index right_foot_index"
)
AZURE = (
    "PELVIS SPINE_NAVEL SPINE_CHEST NECK CLAVICLE_LEFT SHOULDER_LEFT ELBOW_LEFT WRIST_LEFT HAND_LEFT HANDTIP_LEFT "
    "THUMB_LEFT CLAVICLE_RIGHT SHOULDER_RIGHT ELBOW_RIGHT WRIST_RIGHT HAND_RIGHT HANDTIP_RIGHT THUMB_RIGHT HIP_LEFT "
    "KNEE_LEFT ANKLE_LEFT FOOT_LEFT HIP_RIGHT KNEE_RIGHT ANKLE_RIGHT FOOT_RIGHT HEAD NOSE EYE_LEFT EAR_LEFT EYE_RIGHT "
    "EAR_RIGHT"
)


def mirrored(name: str) -> str:
    if name.endswith("_left"):
        return name.removesuffix("_left") + "_right"
    return name.removesuffix("_right") + "_left" if name.endswith("_right") else name


# ------------------------------------------------------------------------------------------------- tables


@EACH
def test_bones_form_one_tree_without_cycles(layout: Layout) -> None:
    assert len(layout.bones) == layout.joints - 1
    reached = {layout.centre}
    for _ in range(layout.joints):
        reached |= {child for child, parent in layout.bones if parent in reached}
    assert reached == set(range(layout.joints))


@EACH
def test_left_and_right_have_the_same_bones(layout: Layout) -> None:
    over = {name: layout.names[parent] for name, parent in zip(layout.names, layout.parents, strict=True)}
    assert over == {mirrored(child): mirrored(parent) for child, parent in over.items()}
    assert mirrored(layout.names[layout.centre]) == layout.names[layout.centre]


@EACH
def test_graphs_are_symmetric_left_to_right(layout: Layout) -> None:
    swap = [layout.names.index(mirrored(name)) for name in layout.names]
    for kind in ("stgcn", "proper"):
        A = adjacency(layout, kind)  # type: ignore[arg-type]
        np.testing.assert_array_equal(A, A[:, swap][:, :, swap])


@pytest.mark.parametrize(
    ("layout", "official", "joints"), [("coco_17", COCO, 17), ("mediapipe_33", MEDIAPIPE, 33), ("azure_kinect", AZURE, 32)]
)  # fmt: skip
def test_joints_stand_in_their_makers_order(layout: str, official: str, joints: int) -> None:
    def ours(name: str) -> str:
        name = name.lower().replace("handtip", "hand_tip")
        side = next((s for s in ("left", "right") if s in name), None)
        return name if side is None else "_".join(p for p in name.split("_") if p != side) + f"_{side}"

    def words(name: str) -> list[str]:
        return sorted(name.split("_"))

    names = LAYOUTS[layout].names
    assert len(names) == joints
    assert [words(n) for n in names] == [words(ours(n)) for n in official.split()]


def test_the_numbers_of_joints_and_coordinates_are_the_documented_ones() -> None:
    assert {n: (v.joints, v.dims) for n, v in LAYOUTS.items()} == {
        "azure_kinect": (32, 3), "coco_17": (17, 2), "kinect_v1": (20, 3), "kinect_v2": (25, 3), "mediapipe_33": (33, 3)
    }  # fmt: skip


def test_origins_are_those_of_the_readers() -> None:
    assert KINECT_V2.names[KINECT_V2.anchor] == "spine_mid"  # joint 2 of the field's NTU scripts
    assert KINECT_V1.names[KINECT_V1.anchor] == "hip_centre"
    assert LAYOUTS["coco_17"].anchor == LAYOUTS["coco_17"].centre


@EACH
def test_a_layout_survives_its_manifest(layout: Layout) -> None:
    again = Layout.from_dict(layout.as_dict())
    assert again == layout
    assert again.anchor == layout.anchor


def test_a_suffix_chooses_the_number_of_coordinates() -> None:
    flat = load_layout("mediapipe_33_2d")
    assert (flat.name, flat.dims, flat.names) == ("mediapipe_33_2d", 2, LAYOUTS["mediapipe_33"].names)
    assert load_layout("coco_17_3d").dims == 3
    for name in ("coco_17_4d", "stick_2d", "_2d"):
        with pytest.raises(ConfigError, match="unknown joint layout"):
            load_layout(name)


# ------------------------------------------------------------------------------------------- own layouts


def test_a_table_of_joints_is_read_in_its_order() -> None:
    text = 'dims = 2\norigin = "hip"\n[joints]\nhead = "head"\nhip = "head"\n[sources]\nhip = ["pelvis", "a + b"]\n'
    layout = parse_layout(text, "own", "own.toml")
    assert layout == Layout("own", ("head", "hip"), (0, 0), 2, 1)
    assert layout.sources == (("hip", (("pelvis",), ("a", "b"))),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("joints = 3", "`joints` is no table of joint = parent"),
        ("[joints]", "0 joints; 1 to 1,000 are possible"),
        ("[joints]\na = 1", "1 is no name of a joint"),
        ('[joints]\na = "a"\na = "a"', "Cannot overwrite a value"),
        ('[joint]\na = "a"', "unknown key 'joint'; did you mean 'joints'?"),
        ('dims = 2.5\n[joints]\na = "a"', "dims = '2.5' is no whole number"),
        ('dims = true\n[joints]\na = "a"', "dims = 'True' is no whole number"),
        ('dims = inf\n[joints]\na = "a"', "dims = 'inf' is no whole number"),
        ('origin = "b"\n[joints]\na = "a"', "the origin 'b' is not one of the names"),
        ('origin = []\n[joints]\na = "a"', "the origin '[]' is not one of the names"),
        ('sources = 1\n[joints]\na = "a"', "`sources` is no table of joint = [ways]"),
        ('[joints]\na = "a"\n[sources]\nb = ["c"]', "sources of 'b', which is not one of the names"),
        ('[joints]\na = "a"\n[sources]\na = "c"', "the sources of 'a' are no list of names"),
        ('names = "ab"\nparents = "aa"', "`names` and `parents` are no lists"),
        ("x = " + "[" * 5000, ""),
        ('[joints]\na = "b"\nb = "a"', "own.toml: layout 'own' has 0 joints that are their own parent"),
    ],
)  # fmt: skip
def test_mistakes_in_an_own_layout_are_one_line_with_the_file(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_layout(text, "own", "own.toml")
    assert str(caught.value).startswith("own.toml: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_chain_of_joints_is_checked_in_one_pass() -> None:
    chain = "\n".join(f'j{n} = "j{max(0, n - 1)}"' for n in range(1000))
    assert parse_layout(f"[joints]\n{chain}", "chain", "chain.toml").joints == 1000


@pytest.mark.parametrize("content", [b"\xff\xfe[joints]", b"#" * (2 << 20)])
def test_a_file_that_is_no_text_or_no_layout_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"own\.toml: "):
        load_layout("own.toml", tmp_path)


# ---------------------------------------------------------------------------------------------- mappings


def test_25_joints_become_20_by_name_and_none_is_a_mean() -> None:
    mapping = KINECT_V2.mapping_to(KINECT_V1)
    taken = {new: KINECT_V2.names[way[0]] for new, way in zip(KINECT_V1.names, mapping, strict=True)}
    assert all(len(way) == 1 for way in mapping)
    assert {new: old for new, old in taken.items() if new != old} == {
        "hip_centre": "spine_base", "spine": "spine_mid", "shoulder_centre": "spine_shoulder"
    }  # fmt: skip
    assert set(KINECT_V2.names) - set(taken.values()) == {
        "neck", "hand_tip_left", "thumb_left", "hand_tip_right", "thumb_right"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "target", "means"),
    [
        ("kinect_v2", "kinect_v1", []),
        ("azure_kinect", "kinect_v1", ["shoulder_centre"]),
        ("azure_kinect", "kinect_v2", ["spine_shoulder"]),
        ("mediapipe_33", "kinect_v1", ["hip_centre", "spine", "shoulder_centre", "head", "hand_left", "hand_right"]),
        ("mediapipe_33_2d", "coco_17", []),
    ],
)  # fmt: skip
def test_the_possible_mappings_and_their_means(source: str, target: str, means: list[str]) -> None:
    there, here = load_layout(source), load_layout(target)
    mapping = there.mapping_to(here)
    assert [name for name, way in zip(here.names, mapping, strict=True) if len(way) > 1] == means
    swap = {n: there.names.index(mirrored(name)) for n, name in enumerate(there.names)}
    by_name = dict(zip(here.names, mapping, strict=True))
    for name, way in by_name.items():
        assert {swap[n] for n in way} == set(by_name[mirrored(name)])


@EACH
def test_a_layout_maps_to_itself_unchanged(layout: Layout) -> None:
    assert layout.mapping_to(layout) == tuple((n,) for n in range(layout.joints))


def test_an_impossible_mapping_names_what_is_lacking() -> None:
    with pytest.raises(ConfigError) as caught:
        KINECT_V1.mapping_to(KINECT_V2)
    assert str(caught.value) == (
        "layout 'kinect_v1' cannot be mapped to 'kinect_v2': it has nothing for spine_base, spine_mid, neck, "
        "spine_shoulder, hand_tip_left, thumb_left, …; choose a layout whose joints it has"
    )
    with pytest.raises(ConfigError, match="'kinect_v2' has 3 coordinates a joint, 'coco_17' has 2"):
        KINECT_V2.mapping_to(LAYOUTS["coco_17"])


def test_mapped_joints_keep_their_bones_and_get_the_other_origin() -> None:
    rng = np.random.default_rng(0)
    joints = rng.normal(size=(6, 2, 25, 3)).astype(np.float32)
    joints[0, 0], joints[3:, 1] = 0, 0
    made = pack.mapped(joints, KINECT_V2, KINECT_V1)
    assert made.shape == (6, 2, 20, 3)
    assert not made[0, 0].any()
    assert not made[3:, 1].any()
    assert not made[1, 0, KINECT_V1.anchor].any()  # the first frame that shows the first body
    index = [way[0] for way in KINECT_V2.mapping_to(KINECT_V1)]
    there = joints.any(axis=(2, 3))
    shift = joints[1, 0, KINECT_V2.names.index("spine_base")]
    np.testing.assert_allclose(made[there], (joints[:, :, index] - shift)[there], atol=1e-6)


def test_means_are_means_of_the_joints() -> None:
    source, target = LAYOUTS["azure_kinect"], KINECT_V1
    joints = np.random.default_rng(1).normal(size=(1, 1, 32, 3)).astype(np.float32)
    made = pack.mapped(joints, source, target)[0, 0]
    place = source.names.index
    expected = (
        joints[0, 0, [place("clavicle_left"), place("clavicle_right")]].mean(0)
        - joints[0, 0, place("pelvis")]
    )
    np.testing.assert_allclose(made[target.names.index("shoulder_centre")], expected, atol=1e-6)


def test_packed_joints_of_another_layout_lie_beside_the_own_ones(
    raw: Path, tmp_path: Path, recipe: Recipe
) -> None:
    work = run_factory(raw, tmp_path / "w", recipe)
    manifest = pack.run(work, recipe, layout="kinect_v1")
    own, other = Packed(work), Packed(work / "packed-kinect_v1")
    assert other.layout == KINECT_V1
    assert own.layout == KINECT_V2
    assert (other.manifest.samples, other.manifest.frames) == (own.manifest.samples, own.manifest.frames)
    assert other.joints.shape == (*own.joints.shape[:3], 20)
    assert manifest.fingerprint != own.manifest.fingerprint
    np.testing.assert_array_equal(other.knowledge("vision")[0], own.knowledge("vision")[0])
    first = other.joints[other.offsets[:-1]][:, :, 0]
    assert not first[:, :, KINECT_V1.anchor].any()
    written = (other.folder / "joints.npy").stat().st_mtime_ns
    assert pack.run(work, recipe, layout="kinect_v1").fingerprint == manifest.fingerprint
    assert (other.folder / "joints.npy").stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="3 coordinates a joint, 'coco_17' has 2"):
        pack.run(work, recipe, layout="coco_17")
    assert not (work / "packed-coco_17").exists()


# ---------------------------------------------------------------------------------------- 2D, end to end


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Packed:
    """COCO keypoints of people who have only a camera and a pose estimator: a table, 2D joints, no videos."""
    from c2vl_manifests.datasets import load_dataset
    from c2vl_pipeline.execution import runner
    from c2vl_pipeline.stages import caption, crop, embed, index, skeletons

    root, work = tmp_path_factory.mktemp("coco"), tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    lines = ["sample_id,skeleton,label,subject,split_mine"]
    for n in range(8):
        np.save(root / f"{n}.npy", rng.normal(size=(20 + n, 17, 2)).cumsum(axis=0).astype(np.float32))
        lines.append(f"s{n},{n}.npy,{n % 2},{n % 4},{'train' if n < 5 else 'test'}")
    (root / "samples.csv").write_text("\n".join(lines) + "\n")
    dataset = load_dataset("generic")
    index.build(dataset, root, work, recipe.pipeline, recipe=recipe.name, layout="coco_17")
    for stage in (skeletons.STAGE, crop.STAGE, caption.STAGE, embed.STAGE):
        runner.run(stage, work, recipe)
    pack.run(work, recipe)
    return Packed(work)


def test_2d_joints_are_packed_with_two_planes(flat: Packed) -> None:
    assert flat.joints.shape == (sum(range(20, 28)), 2, 1, 17)
    assert flat.layout == LAYOUTS["coco_17"]
    assert not flat.joints[flat.offsets[:-1]][:, :, 0, 0].any()  # the nose of each first frame is the origin


@pytest.mark.parametrize("stream", ["joint", "bone", "motion"])
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_every_encoder_takes_every_stream_of_2d_clips(flat: Packed, name: str, stream: str) -> None:
    config = InputConfig.model_validate({"frames": 16, "stream": stream})
    rows = flat.select("mine", "train").rows
    clips = Clips(flat, rows, config, torch.device("cpu"))
    at = torch.arange(len(rows))
    batch = clips.train(at, draw(len(rows), config, torch.Generator().manual_seed(0)))
    assert batch.shape == (5, 2, 16, 17, 1)
    with torch.inference_mode():
        out = build(name, flat.layout, bodies=1).eval()(batch[:1])
    assert out.shape[0] == 1
    assert torch.isfinite(out).all()


def test_2d_rotation_stays_in_the_plane_and_keeps_distances(flat: Packed) -> None:
    rows = flat.select("mine", "train").rows
    turned = InputConfig.model_validate(
        {"frames": 16, "augmentation": {"rotation": 1.0, "window": [1.0, 1.0]}}
    )
    still = turned.model_copy(
        update={"augmentation": turned.augmentation.model_copy(update={"rotation": 0.0})}
    )
    at, draws = torch.arange(len(rows)), draw(len(rows), turned, torch.Generator().manual_seed(3))
    a = Clips(flat, rows, turned, torch.device("cpu")).train(at, draws)
    b = Clips(flat, rows, still, torch.device("cpu")).train(
        at, draw(len(rows), still, torch.Generator().manual_seed(3))
    )
    assert not torch.allclose(a, b)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=1), rtol=1e-4, atol=1e-4)
    cross = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    angle = torch.atan2(cross, (a * b).sum(1)).flatten(1)
    far = b.norm(dim=1).flatten(1) > 0.5
    for clip, mask in zip(angle, far, strict=True):  # one angle a clip
        assert clip[mask].std() < 1e-3


@EACH
def test_every_encoder_builds_for_every_layout(layout: Layout) -> None:
    x = torch.zeros(1, layout.dims, 16, layout.joints, 1)
    for name in ("stgcn_slim", "bigru"):
        assert torch.isfinite(build(name, layout, bodies=1).eval()(x)).all()


def test_sentences_need_no_pelvis_where_there_are_hips() -> None:
    for name in ("coco_17", "mediapipe_33", "azure_kinect"):
        layout = LAYOUTS[name]
        found = roles(layout)
        assert found["hip_left"] == [layout.names.index("hip_left")]
    assert [LAYOUTS["coco_17"].names[n] for n in roles(LAYOUTS["coco_17"])["pelvis"]] == [
        "hip_left",
        "hip_right",
    ]


@EACH
@pytest.mark.parametrize("people", [None, 1, 3])
def test_pose_files_of_every_layout_are_read(tmp_path: Path, layout: Layout, people: int | None) -> None:
    shape = (5, layout.joints, layout.dims) if people is None else (5, people, layout.joints, layout.dims)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=shape))
    made = read_array(tmp_path / "x.npy", layout, 2)
    assert made.joints.shape == (5, min(people or 1, 2), layout.joints, layout.dims)
    assert not made.joints[0, 0, layout.anchor].any()
    np.save(tmp_path / "y.npy", np.zeros((5, layout.joints + 1, layout.dims)))
    with pytest.raises(C2VLError, match=f"layout '{layout.name}' needs"):
        read_array(tmp_path / "y.npy", layout, 2)
