"""What --device does where the device is, and where it is not."""

import json


def test_inspect_loads_every_layer_on_the_device(flute, quantized):
    report = json.loads(flute("inspect", quantized, "--device", "cpu", "--json").stdout)
    assert report["on_device"]["layers"] == len(report["layers"])
    assert report["on_device"]["refused"] == []
    assert report["on_device"]["bytes"] >= sum(layer["bytes"] for layer in report["layers"])
    assert "on cpu: 28 quantized layers" in flute("inspect", quantized, "--device", "cpu").stdout


def test_a_device_that_is_not_there_is_one_line(flute, quantized):
    for command in (["bench"], ["inspect", quantized]):
        flute.fails(*command, "--device", "cuda:99", mentions=["CUDA"])
        flute.fails(*command, "--device", "gpu", code=2, mentions=["cpu, cuda or cuda:N", "gpu"])


def test_plans_need_no_device(flute):
    shapes = ["--shape", "4096x4096", "--shape", "6144x4096", "--m", "1,64,1000", "--bits", "4,3,2"]
    output = flute("bench", "--device", "cuda:99", "--plan", "--json", *shapes).stdout
    lines = [json.loads(line) for line in output.splitlines()]
    assert len(lines) == 2 * 3 * 3
    assert [line["shape"]["m"] for line in lines[:3]] == [1, 64, 1000]
    # Without a device the plans are an H100's, which has kernels of its own for many tokens.
    families = {1: "decode: ", 64: "prefill: ", 1000: "prefill: "}
    assert all(line["plan"].startswith(families[line["shape"]["m"]]) for line in lines)


def test_plans_of_formats_without_kernels_are_refused(flute):
    shape = ["--shape", "4096x4096"]
    flute.fails("bench", "--plan", *shape, code=2, mentions=["--device cuda"])
    result = flute("bench", "--device", "cuda", "--plan", "--bits", "5", *shape, code=1)
    assert "2, 3 and 4 bits, found 5" in result.stderr
