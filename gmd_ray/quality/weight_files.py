"""The weight files of every metric: their names, addresses, checksums and places below a weights directory.

A weights directory has the layout of torch's hub directory (`torch.hub.get_dir()`, usually ~/.cache/torch/hub):

    pyiqa/          the files that pyiqa publishes
    checkpoints/    backbones of torchvision and others, as `torch.hub.load_state_dict_from_url` stores them
    clip/           OpenAI's CLIP models

The table was read from the sources of pyiqa 0.1.16 and timm 1.0. The addresses themselves have not been tried: the
project is developed without internet access. tests/quality/test_weight_files.py compares the table with what the
installed pyiqa asks for.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PYIQA = "{hub}/chaofengc/IQA-PyTorch-Weights/resolve/main"
_TORCHVISION = "https://download.pytorch.org/models"
_CLIP = "https://openaipublic.azureedge.net/clip/models"
_FACEXLIB = "https://github.com/xinntao/facexlib/releases/download"
_SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0"


@dataclass(frozen=True)
class WeightFile:
    """One file that a metric loads."""

    name: str
    folder: str
    """Folder below the weights directory. One that begins with `~` is fixed, because pyiqa accepts no other."""
    source: str
    """Address of the folder on the server; `{hub}` stands for the model hub (HF_ENDPOINT)."""
    sha256: str = ""
    """First hexadecimal digits of the SHA-256, or all 64; empty where neither the library nor the name gives them."""
    backbone: bool = False
    """True if the metric needs it beside a weight file that the settings name."""

    @property
    def url(self) -> str:
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return f"{self.source.format(hub=hub)}/{self.name}"

    def place(self, directory: Path) -> Path:
        """Where the file is, or goes, for this weights directory."""
        return directory / os.path.expanduser(self.folder) / self.name


def _pyiqa(name: str, backbone: bool = False) -> WeightFile:
    """A file of pyiqa's repository on the model hub, which states its SHA-256 when it answers."""
    return WeightFile(name, "pyiqa", _PYIQA, backbone=backbone)


def _torchvision(name: str) -> WeightFile:
    """torchvision puts the first eight digits of the SHA-256 in the name: `vgg16-397923af.pth`."""
    return WeightFile(name, "checkpoints", _TORCHVISION, name.rpartition("-")[2].partition(".")[0], backbone=True)


def _clip(name: str, sha256: str, folder: str = "clip", backbone: bool = True) -> WeightFile:
    """A CLIP model; OpenAI's addresses contain the SHA-256."""
    return WeightFile(name, folder, f"{_CLIP}/{sha256}", sha256, backbone)


_ALEXNET = _torchvision("alexnet-owt-7be5be79.pth")
_VGG16 = _torchvision("vgg16-397923af.pth")
_RESNET50 = _torchvision("resnet50-0676ba61.pth")
_SWIN_BASE = WeightFile("swin_base_patch4_window12_384_22kto1k.pth", "checkpoints", _SWIN, backbone=True)
_RN50_SHA = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
_VIT_B_32_SHA = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_VIT_L_14_SHA = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
_RN50 = _clip("RN50.pt", _RN50_SHA)
_VIT_B_32 = _clip("ViT-B-32.pt", _VIT_B_32_SHA)
_HOME = "~/.cache/clip"
_FACES = (
    WeightFile("detection_Resnet50_Final.pth", "pyiqa", f"{_FACEXLIB}/v0.1.0", backbone=True),
    WeightFile("parsing_parsenet.pth", "pyiqa", f"{_FACEXLIB}/v0.2.2", backbone=True),
)
_QUALICLIP = _pyiqa("QualiCLIP.pth", backbone=True)
_ARNIQA = WeightFile("ARNIQA.pth", "checkpoints", _PYIQA, backbone=True)
_LPIPS_ALEX = (_ALEXNET, _pyiqa("LPIPS_v0.1_alex-df73285e.pth"))
_LPIPS_VGG = (_VGG16, _pyiqa("LPIPS_v0.1_vgg-a78928a0.pth"))
_AFINE = (_clip("ViT-B-32.pt", _VIT_B_32_SHA, _HOME), _pyiqa("afine.pth"))

_FORMULAS = (
    *("psnr", "psnr_y", "psnry", "ssim", "ssim_y", "ssimc", "ms_ssim", "cw_ssim", "fsim", "vif", "gmsd", "nlpd"),
    *("vsi", "mad", "piqe", "entropy"),
)

FILES: dict[str, tuple[WeightFile, ...]] = {
    **dict.fromkeys(_FORMULAS, ()),
    "afine_all": _AFINE,
    "afine_all_scale": _AFINE,
    "afine_fr": _AFINE,
    "afine_nr": _AFINE,
    "ahiq": (_pyiqa("AHIQ_vit_p8_epoch33-da3ea303.pth"),),
    "arniqa": (_RESNET50, _ARNIQA, _pyiqa("regressor_koniq10k.pth")),
    "arniqa-clive": (_RESNET50, _ARNIQA, _pyiqa("regressor_clive.pth")),
    "arniqa-csiq": (_RESNET50, _ARNIQA, _pyiqa("regressor_csiq.pth")),
    "arniqa-flive": (_RESNET50, _ARNIQA, _pyiqa("regressor_flive.pth")),
    "arniqa-kadid": (_RESNET50, _ARNIQA, _pyiqa("regressor_kadid10k.pth")),
    "arniqa-live": (_RESNET50, _ARNIQA, _pyiqa("regressor_live.pth")),
    "arniqa-spaq": (_RESNET50, _ARNIQA, _pyiqa("regressor_spaq.pth")),
    "arniqa-tid": (_RESNET50, _ARNIQA, _pyiqa("regressor_tid2013.pth")),
    "brisque": (_pyiqa("brisque_svm_weights.pth"),),
    "brisque_matlab": (_pyiqa("brisque_matlab.mat"),),
    "ckdn": (_torchvision("resnet50-19c8e357.pth"), _pyiqa("CKDN_model_best-38b27dc6.pth")),
    "clipiqa": (_clip("RN50.pt", _RN50_SHA, backbone=False),),
    "clipiqa+": (_RN50, _pyiqa("CLIP-IQA+_learned_prompts-603f3273.pth")),
    "clipiqa+_rn50_512": (_RN50, _pyiqa("CLIPIQA+_RN50_512-89f5d940.pth")),
    "clipiqa+_vitL14_512": (_clip("ViT-L-14.pt", _VIT_L_14_SHA), _pyiqa("CLIPIQA+_ViTL14_512-e66488f2.pth")),
    "cnniqa": (_pyiqa("CNNIQA_koniq10k-e6f14c91.pth"),),
    "dbcnn": (_VGG16, _pyiqa("DBCNN_scnn-7ea73d75.pth", backbone=True), _pyiqa("DBCNN_KonIQ10k-2de81c0a.pth")),
    "deepdc": (_torchvision("vgg19-dcbb9e9d.pth"),),
    "dists": (_VGG16, _pyiqa("DISTS_weights-f5e65c96.pth")),
    "dmm": (_VGG16,),
    "fgresq": (_pyiqa("FGResQ_Degradation.pth", backbone=True), _pyiqa("FGResQ.pth")),
    "fgresq_pair": (_pyiqa("FGResQ_Degradation.pth", backbone=True), _pyiqa("FGResQ.pth")),
    "fid": (WeightFile("pt_inception-2015-12-05-6726825d.pth", "pyiqa", _PYIQA),),
    "hyperiqa": (_pyiqa("HyperIQA-resnet50-koniq10k-c96c41b1.pth"),),
    "ilniqe": (_pyiqa("ILNIQE_templateModel.mat"),),
    "laion_aes": (_clip("ViT-L-14.pt", _VIT_L_14_SHA, _HOME), _pyiqa("sac+logos+ava1-l14-linearMSE.pth")),
    "liqe": (_VIT_B_32, _pyiqa("liqe_koniq.pt")),
    "liqe_mix": (_VIT_B_32, _pyiqa("liqe_mix.pt")),
    "lpips": _LPIPS_ALEX,
    "lpips+": _LPIPS_ALEX,
    "lpips-vgg": _LPIPS_VGG,
    "lpips-vgg+": _LPIPS_VGG,
    "maclip": (_RN50,),
    "maniqa": (_pyiqa("ckpt_koniq10k.pt"),),
    "maniqa-kadid": (_pyiqa("ckpt_kadid10k.pt"),),
    "maniqa-pipal": (_pyiqa("MANIQA_PIPAL-ae6d356b.pth"),),
    "metaiqa": (_pyiqa("Metaiqa_livec.pth"),),
    "msswd": (_pyiqa("msswd_weights.pth"),),
    "musiq": (_pyiqa("musiq_koniq_ckpt-e95806b9.pth"),),
    "musiq-ava": (_pyiqa("musiq_ava_ckpt-e8d3f067.pth"),),
    "musiq-paq2piq": (_pyiqa("musiq_paq2piq_ckpt-364c0c84.pth"),),
    "musiq-spaq": (_pyiqa("musiq_spaq_ckpt-358bb6af.pth"),),
    "nima": (_pyiqa("NIMA_InceptionV2_ava-b0c77c00.pth"),),
    "nima-koniq": (_pyiqa("NIMA_koniq-250367ae.pth"),),
    "nima-spaq": (_pyiqa("NIMA-spaq-46a7fcb7.pth"),),
    "nima-vgg16-ava": (_pyiqa("NIMA_VGG16_ava-dc4e8265.pth"),),
    "niqe": (_pyiqa("niqe_modelparameters.mat"),),
    "niqe_matlab": (_pyiqa("niqe_matlab_params.mat"),),
    "nrqm": (_pyiqa("NRQM_model.mat"),),
    "paq2piq": (_torchvision("resnet18-f37072fd.pth"), _pyiqa("P2P_RoIPoolModel-fit.10.bs.120-ca69882e.pth")),
    "pi": (_pyiqa("NRQM_model.mat"), _pyiqa("niqe_modelparameters.mat")),
    "pieapp": (_pyiqa("PieAPPv0.1-0937b014.pth"),),
    "qualiclip": (_RN50, _QUALICLIP),
    "qualiclip+": (_RN50, _QUALICLIP, _pyiqa("QualiCLIP+_koniq.pth")),
    "qualiclip+-clive": (_RN50, _QUALICLIP, _pyiqa("QualiCLIP+_clive.pth")),
    "qualiclip+-flive": (_RN50, _QUALICLIP, _pyiqa("QualiCLIP+_flive.pth")),
    "qualiclip+-spaq": (_RN50, _QUALICLIP, _pyiqa("QualiCLIP+_spaq.pth")),
    "stlpips": (_pyiqa("alex_shift_tolerant.pth"),),
    "stlpips-vgg": (_pyiqa("vgg_shift_tolerant.pth"),),
    "topiq_fr": (_pyiqa("cfanet_fr_kadid_res50-2c4cc61d.pth"),),
    "topiq_fr-pipal": (_pyiqa("cfanet_fr_pipal_res50-69bbe5ba.pth"),),
    "topiq_iaa": (_SWIN_BASE, _pyiqa("cfanet_iaa_ava_swin-393b41b4.pth")),
    "topiq_iaa_res50": (_pyiqa("cfanet_iaa_ava_res50-3cd62bb3.pth"),),
    "topiq_nr": (_pyiqa("cfanet_nr_koniq_res50-9a73138b.pth"),),
    "topiq_nr-face": (*_FACES, _pyiqa("topiq_nr_cgfiqa_res50-0a8b8e4f.pth")),
    "topiq_nr-face-v1": (*_FACES, _pyiqa("topiq_nr_gfiqa_res50-d76bf1ae.pth")),
    "topiq_nr-flive": (_pyiqa("cfanet_nr_flive_res50-ded1c74e.pth"),),
    "topiq_nr-spaq": (_pyiqa("cfanet_nr_spaq_res50-a7f799ac.pth"),),
    "topiq_nr_swin-face": (_SWIN_BASE, *_FACES, _pyiqa("topiq_nr_gfiqa_swin-7bb80a60.pth")),
    "tres": (_RESNET50, _pyiqa("tres_koniq-f0502926.pth")),
    "tres-flive": (_RESNET50, _pyiqa("tres_flive-09b0de5b.pth")),
    "unique": (_torchvision("resnet34-b627a593.pth"), _pyiqa("UNIQUE.pt")),
    "uranker": (_pyiqa("URanker_ckpt-450eb36d.pth"),),
    "wadiqam_fr": (_pyiqa("WaDIQaM-kadid-f7541ea5.pth"),),
    "wadiqam_nr": (_pyiqa("WaDIQaM-NR-koniq-aaffea29.pth"),),
}
"""Metric -> the files that it loads, in pyiqa's order; none for a formula.

NIMA, MANIQA, HyperIQA and TOPIQ with a ResNet have one file each: pyiqa would also download the backbone, only to
overwrite all of it from that file (see `whole_checkpoints`).
"""

_ONE_ALIGN = ("q-future/one-align",)
REPOSITORIES: dict[str, tuple[str, ...]] = {
    "ahiq": ("timm/resnet50.a1_in1k", "timm/vit_base_patch8_224.augreg2_in21k_ft_in1k"),
    "compare2score": ("q-future/Compare2Score",),
    "fgresq": ("openai/clip-vit-base-patch16",),
    "fgresq_pair": ("openai/clip-vit-base-patch16",),
    "qalign": _ONE_ALIGN,
    "qalign_4bit": _ONE_ALIGN,
    "qalign_8bit": _ONE_ALIGN,
    "qrealign": ("q-future/Q-ReAlign-Mini-0.8B",),
    "qrealign-lite": ("q-future/Q-ReAlign-Lite-4B",),
    "qrealign-mini": ("q-future/Q-ReAlign-Mini-0.8B",),
    "qrealign-pro": ("q-future/Q-ReAlign-Pro-9B",),
}
"""Metric -> whole repositories of the model hub that it loads from the hub's own cache.

Which of their files are read depends on the installed timm and transformers, so `gmd-ray fetch` does not fetch them.
"""
