"""The table of benchmarks."""

from eval.benchmarks import (
    easy_vqa,
    gqa,
    llava_bench,
    mm_vet,
    mmbench,
    mme,
    pope,
    scienceqa,
    seed_bench,
    short_answers,
    textvqa,
    vizwiz,
    vqav2,
)
from eval.benchmarks.videos import mvbench, next_qa, video_mme
from eval.scoring.protocol import Benchmark
from sparse_vlm.errors import unknown_choice

BENCHMARKS: dict[str, Benchmark] = {
    "easy_vqa": easy_vqa.BENCHMARK,
    "gqa": gqa.BENCHMARK,
    "llava_bench": llava_bench.BENCHMARK,
    "mm_vet": mm_vet.BENCHMARK,
    "mmbench": mmbench.MMBENCH,
    "mmbench_cn": mmbench.MMBENCH_CN,
    "mme": mme.BENCHMARK,
    "mvbench": mvbench.BENCHMARK,
    "next_qa": next_qa.BENCHMARK,
    "pope": pope.BENCHMARK,
    "scienceqa": scienceqa.BENCHMARK,
    "seed_bench": seed_bench.BENCHMARK,
    "short_answers": short_answers.BENCHMARK,
    "textvqa": textvqa.BENCHMARK,
    "video_mme": video_mme.VIDEO_MME,
    "video_mme_subtitles": video_mme.VIDEO_MME_SUBTITLES,
    "vizwiz": vizwiz.BENCHMARK,
    "vqav2": vqav2.BENCHMARK,
}


def find_benchmark(name: str) -> Benchmark:
    """Return the benchmark of this name.

    Raises:
        UserError: unknown name (the nearest ones are named).
    """
    if name not in BENCHMARKS:
        raise unknown_choice("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]
