"""Joint layouts: tables of joints, own layouts and mappings between layouts."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from c2vl_manifests.errors import ConfigError
from c2vl_manifests.layouts import KINECT_V1, KINECT_V2, LAYOUTS, Layout, load_layout, parse_layout
from c2vl_pipeline.stages import pack
from support.layouts import EACH, mirrored

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
        "azure_kinect": (32, 3), "body_25": (25, 2), "coco_17": (17, 2), "coco_18": (18, 2), "halpe_26": (26, 2),
        "kinect_v1": (20, 3), "kinect_v2": (25, 3), "mediapipe_33": (33, 3),
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
        ("joints = 3", "`joints` is not a table of joint = parent"),
        ("[joints]", "0 joints; 1 to 1,000 are possible"),
        ("[joints]\na = 1", "1 is not the name of a joint"),
        ('[joints]\na = "a"\na = "a"', "Cannot overwrite a value"),
        ('[joint]\na = "a"', "unknown key 'joint'; did you mean 'joints'?"),
        ('dims = 2.5\n[joints]\na = "a"', "dims = '2.5' is not a whole number"),
        ('dims = true\n[joints]\na = "a"', "dims = 'True' is not a whole number"),
        ('dims = inf\n[joints]\na = "a"', "dims = 'inf' is not a whole number"),
        ('origin = "b"\n[joints]\na = "a"', "the origin 'b' is not one of the names"),
        ('origin = []\n[joints]\na = "a"', "the origin '[]' is not one of the names"),
        ('sources = 1\n[joints]\na = "a"', "`sources` is not a table of joint = [ways]"),
        ('[joints]\na = "a"\n[sources]\nb = ["c"]', "sources of 'b', which is not one of the names"),
        ('[joints]\na = "a"\n[sources]\na = "c"', "the sources of 'a' are not a list of names"),
        ('names = "ab"\nparents = "aa"', "`names` and `parents` are not lists"),
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
    with pytest.raises(ConfigError, match="'kinect_v2' has 3 coordinates per joint, 'coco_17' has 2"):
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
    expected = joints[0, 0, [place("clavicle_left"), place("clavicle_right")]].mean(0) - joints[0, 0, place("pelvis")]
    np.testing.assert_allclose(made[target.names.index("shoulder_centre")], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "gone", "lacks"),
    [
        ("azure_kinect", "clavicle_left", "shoulder_centre"),  # one of the two joints of a mean
        ("azure_kinect", "hand_right", "hand_right"),
        ("kinect_v2", "spine_base", "hip_centre"),  # the other origin
    ],
)
def test_joints_made_of_missing_ones_are_missing(source: str, gone: str, lacks: str) -> None:
    layout, target = LAYOUTS[source], KINECT_V1
    joints = np.random.default_rng(1).normal(size=(9, 1, layout.joints, 3)).astype(np.float32)
    joints -= joints[0, 0, layout.anchor]
    joints[:4, 0, layout.names.index(gone)] = 0
    made = pack.mapped(joints, layout, target)[:, 0]
    assert [target.names[j] for j in np.flatnonzero(~made[2].any(axis=1))] == [lacks]
    first = 4 if lacks == "hip_centre" else 0
    assert not made[first, target.anchor].any()
    root = layout.names.index("spine_base" if source == "kinect_v2" else "pelvis")
    wanted = joints[:, 0, layout.names.index("knee_left")] - joints[first, 0, root]
    np.testing.assert_allclose(made[:, target.names.index("knee_left")], wanted, atol=1e-5)


def test_a_stored_layout_knows_the_other_names_of_its_joints() -> None:
    for layout in (KINECT_V1, load_layout("kinect_v1_2d"), LAYOUTS["coco_17"]):
        assert Layout.from_dict(layout.as_dict()).sources == layout.sources
    renamed = Layout("kinect_v1", ("a", "b"), (0, 0))
    assert Layout.from_dict(renamed.as_dict()).sources == ()


PUBLISHED_BONES = """
(1,2)(2,21)(3,21)(4,3)(5,21)(6,5)(7,6)(8,7)(9,21)(10,9)(11,10)(12,11)(13,1)(14,13)(15,14)(16,15)(17,1)(18,17)(19,18)
(20,19)(21,21)(22,23)(23,8)(24,25)(25,12)
"""


# ---------------------------------------------------------------------------------------------- layouts


def test_the_25_published_bone_pairs_are_the_layouts() -> None:
    published = [(int(c) - 1, int(p) - 1) for c, p in re.findall(r"\((\d+),(\d+)\)", PUBLISHED_BONES)]
    assert len(published) == 25
    assert list(enumerate(KINECT_V2.parents)) == sorted(published)
    assert set(KINECT_V2.bones) == {(c, p) for c, p in published if c != p}
    assert KINECT_V2.centre == 20


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=lambda layout: layout.name)
def test_bones_form_one_tree(layout: Layout) -> None:
    assert len(layout.bones) == layout.joints - 1
    assert layout.centre not in {child for child, _ in layout.bones}
    assert load_layout(layout.name) is layout


def test_kinect_v1_has_the_20_joints_of_utd_in_kinect_order() -> None:
    assert KINECT_V1.joints == 20
    assert KINECT_V1.names[:4] == ("hip_centre", "spine", "shoulder_centre", "head")
    assert KINECT_V1.index("nose", "head") == 3
    assert KINECT_V1.index("nose") is None


def test_an_own_layout_is_read_from_toml(tmp_path: Path) -> None:
    (tmp_path / "stick.toml").write_text(
        'names = ["hip", "knee", "foot"]\nparents = ["hip", "hip", "knee"]\ndims = 2\n'
    )
    layout = load_layout("stick.toml", tmp_path)
    assert layout == Layout("stick", ("hip", "knee", "foot"), (0, 0, 1), 2)
    assert layout.bones == ((1, 0), (2, 1))
    assert layout.centre == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'names = ["a", "b", "c"]\nparents = ["a", "c", "b"]',
            "layout 'own': the parents of joint 'b' form a ring; every chain of parents must end at the centre 'a'",
        ),
        (
            'names = ["a", "b"]\nparents = ["a", "b"]',
            "layout 'own' has 2 joints that are their own parent; exactly one, the centre, must be",
        ),
        (
            'names = ["a", "b"]\nparents = ["b", "a"]',
            "layout 'own' has 0 joints that are their own parent; exactly one, the centre, must be",
        ),
        ('names = ["a", "b"]\nparents = ["a"]', "layout 'own' names 2 joints but gives 1 parents; give one parent per joint"),
        ('names = ["a", "a"]\nparents = ["a", "a"]', "layout 'own' names a twice; joint names must be unique"),
        ('names = ["a"]\nparents = ["a"]\ndims = 4', "layout 'own' has dims = 4; 2 or 3 coordinates are possible"),
        ('names = ["a"]\nparents = ["z"]', "own.toml: not a joint layout (the parent 'z' is not one of the names); give a table `joints`"),
        ('names = ["a"]', "own.toml: not a joint layout ('parents'); give"),
        ("names = 3\nparents = 3", "own.toml: not a joint layout (`names` and `parents` are not lists); give"),
        ('names = ["a"]\nparents = ["a"]\ndims = "x"', "own.toml: not a joint layout (dims = 'x' is not a whole number)"),
        ("names = [", "own.toml: not a joint layout (Invalid value"),
    ],
)  # fmt: skip
def test_a_layout_that_is_no_tree_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_layout("own.toml", tmp_path)
    assert expected in str(caught.value)


def test_an_unknown_layout_names_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_layout("kinect")
    assert (
        str(caught.value)
        == "unknown joint layout 'kinect'; use one of azure_kinect, body_25, coco_17, coco_18, halpe_26, kinect_v1, kinect_v2, "
        "mediapipe_33 (with _2d or _3d for that many coordinates) or the path of a TOML file"
    )


@EACH
def test_a_drawing_names_every_joint_once_below_its_parent(layout: Layout) -> None:
    lines = layout.drawing()
    drawn = [word for line in lines for word in re.findall(r"(\d+) ([a-z_]+)", line)]
    assert sorted(drawn, key=lambda one: int(one[0])) == [(str(n), name) for n, name in enumerate(layout.names)]
    assert all(
        layout.parents[int(child)] == int(parent)
        for line in lines
        for parent, child in pairwise(re.findall(r"\d+", line))
    )
    assert drawn[0][1] == layout.names[layout.centre]
    assert max(map(len, lines)) <= 100
