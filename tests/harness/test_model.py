"""The class that lmms-eval makes, asked by requests as lmms-eval makes them."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from families.processors import save_checkpoint
from PIL import Image

import lightkv_gnn as lk
from lightkv_gnn.asking import answers, prompts
from lightkv_gnn.asking.scores import answer_ids, score

if not find_spec("lmms_eval"):
    pytest.skip("lmms-eval is not installed", allow_module_level=True)

# lmms-eval and what it imports warn of much.
pytestmark = pytest.mark.filterwarnings("ignore")

STAGES = "schedule=0:2:0.5+2:1:0.5"
SCHEDULE = [lk.Stage(0, 2, 0.5), lk.Stage(2, 1, 0.5)]
OPTIONS = {"max_new_tokens": 6, "do_sample": False}


def photo(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


DOCUMENTS = [
    ("what is it?", [photo(0)]),
    ("why", []),
    ("which of the two is larger?", [photo(1), photo(2)]),
    ("who?", []),
    ("how", [photo(3)]),
]


def messages(document):
    text, pictures = document
    content = [{"type": "image", "url": picture} for picture in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def requests_for(documents, options=OPTIONS, task="own", **metadata):
    from lmms_eval.api.instance import Instance

    return [
        Instance(
            request_type="generate_until",
            arguments=(text, messages, options, number, task, "test"),
            idx=0,
            metadata={"task": task, "doc_id": number, "repeats": 1, **metadata},
        )
        for number, (text, _) in enumerate(documents)
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    save_checkpoint("llava", folder)
    return folder


@pytest.fixture
def made(checkpoint):
    """Makes the model with some more arguments, about to be asked :data:`DOCUMENTS`."""
    from lmms_eval.models import get_model

    def make(arguments=STAGES, **options):
        arguments = f"pretrained={checkpoint},{arguments}"
        model = get_model("lightkv").create_from_arg_string(arguments, options)
        model.task_dict["own"] = model.task_dict["other"] = {"test": DOCUMENTS}
        return model

    return make


def attached(model):
    return lk.attach(model, lk.LightKVConfig.for_model(model, stages=SCHEDULE))


def texts(found):
    return [one.text for one in found]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_answers_are_those_of_attach(made, size):
    """Batches of questions with no, one and several pictures; the order is the requests'."""
    lightkv = made(batch_size=size)
    found = lightkv.generate_until(requests_for(DOCUMENTS))
    with attached(lightkv.model):
        expected = [
            answers.generate(lightkv.model, lightkv.processor, pictures, text, max_new_tokens=6)
            if pictures
            else text_answer(lightkv, text)
            for text, pictures in DOCUMENTS
        ]
    assert texts(found) == expected
    assert len(set(expected)) == len(expected)


def text_answer(lightkv, text):
    content = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    prompt = lightkv.processor.apply_chat_template(content, add_generation_prompt=True)
    marks = prompts.marks(lightkv.processor, prompt)
    inputs = lightkv.processor(text=prompt, return_tensors="pt", **marks)
    tokens = lightkv.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    new = tokens[0, inputs["input_ids"].shape[1] :]
    return lightkv.processor.decode(new, skip_special_tokens=True).strip()


def test_costs_are_those_of_the_questions_with_pictures(made):
    lightkv = made(batch_size=1)
    lightkv.generate_until(requests_for(DOCUMENTS))
    lightkv.generate_until(requests_for(DOCUMENTS, __padding_only__=True))
    account = lightkv._accounts["own"]
    with attached(lightkv.model) as handle:
        ledgers = []
        for text, pictures in DOCUMENTS:
            if pictures:
                answers.generate(lightkv.model, lightkv.processor, pictures, text)
                ledgers.append(handle.ledger.totals())
    assert account.questions == len(ledgers) == 3
    assert account.kv_bytes == sum(totals["kv_bytes"] for totals in ledgers)
    assert account.kv_bytes_full == sum(totals["kv_bytes_full"] for totals in ledgers)
    assert account.first_token > 0


def test_questions_without_pictures_cost_nothing_in_batches_either(made):
    lightkv = made(batch_size=5)
    lightkv.generate_until(requests_for(DOCUMENTS))
    assert lightkv._accounts["own"].questions == 3
    lightkv.generate_until(requests_for(DOCUMENTS[:2]))
    assert lightkv._accounts["own"].questions == 4


def test_requests_that_only_make_processes_alike_are_not_asked(made):
    found = made().generate_until(requests_for(DOCUMENTS, __padding_only__=True))
    assert texts(found) == [""] * len(DOCUMENTS)


def test_an_answer_is_cut_where_the_task_ends_it(made):
    lightkv = made()
    (free,) = lightkv.generate_until(requests_for(DOCUMENTS[:1]))
    stop = free.text[2]
    (cut,) = lightkv.generate_until(requests_for(DOCUMENTS[:1], OPTIONS | {"until": [stop]}))
    assert cut.text == free.text.split(stop)[0].strip()
    assert cut.token_counts.output_tokens < free.token_counts.output_tokens


def test_the_report_is_lmms_evals_own(made):
    from lmms_eval.models.model_utils import gen_metrics

    lightkv = made()
    lightkv.generate_until(requests_for(DOCUMENTS))
    lightkv.generate_until(requests_for(DOCUMENTS[:1], task="other"))
    accounts = dict(lightkv._accounts)
    gen_metrics.reset_logged_metrics()
    lightkv.clean()
    summary = gen_metrics.summarize_logged_metrics()
    for name, value in accounts["other"].metrics().items():
        assert summary[f"avg_other_{name}"] == pytest.approx(value)
    total = accounts["own"] + accounts["other"]
    assert summary["avg_retention"] == pytest.approx(total.metrics()["retention"])
    assert summary["total_gen_tokens"] > 0
    assert not hasattr(lightkv, "model")


def test_nothing_is_reported_where_nothing_was_asked(made):
    from lmms_eval.models.model_utils import gen_metrics

    lightkv = made()
    lightkv.generate_until([])
    gen_metrics.reset_logged_metrics()
    lightkv.clean()
    assert gen_metrics.summarize_logged_metrics() == {}


def test_the_model_is_free_after_an_error(made):
    lightkv = made()
    wrong = requests_for(DOCUMENTS[:1], {"max_new_tokens": -1})
    with pytest.raises(ValueError, match="max_new_tokens"):
        lightkv.generate_until(wrong)
    with attached(lightkv.model):
        pass


def test_questions_of_other_tasks_or_options_are_asked_apart():
    from lightkv_gnn.harness.lmms import batches

    requests = [
        *requests_for(DOCUMENTS),
        *requests_for(DOCUMENTS[:2], {"max_new_tokens": 3}),
        *requests_for(DOCUMENTS[:3], task="other"),
    ]
    found = list(batches(requests, range(1, len(requests)), 2))
    assert sorted(number for batch in found for number in batch) == list(range(1, 10))
    assert found[0] == [2, 3]  # the longest questions
    for batch in found:
        assert len(batch) <= 2
        assert len({repr(requests[number].args[2:3]) for number in batch}) == 1
        assert len({requests[number].args[4] for number in batch}) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ("schedule=90:1:0.5", lk.ScheduleError, "90"),
        ("retention=0.01", lk.ScheduleError, "keeps 1%"),
        ("lightkv_baseline=fastv,depth=30", lk.ScheduleError, "depth is 30"),
        ("retentoin=0.5", ValueError, "did you mean retention"),
    ],
)
def test_what_cannot_be_had_fails_before_any_question(made, arguments, error, told):
    with pytest.raises(error, match=told):
        made(arguments)


CHOICES = [["yes", "no way"], ["because", "so"], ["red"]]


def pictures(document):
    return document[1]


def likelihood_requests(**metadata):
    """Choices of three documents, as lmms-eval makes them."""
    from lmms_eval.api.instance import Instance

    return [
        Instance(
            request_type="loglikelihood",
            arguments=(text, f" {choice}", pictures, number, "own", "test"),
            idx=idx,
            metadata={"task": "own", "doc_id": number, "repeats": 1, **metadata},
        )
        for number, ((text, _), choices) in enumerate(zip(DOCUMENTS, CHOICES, strict=False))
        for idx, choice in enumerate(choices)
    ]


def pairs(found):
    """As lmms-eval's metrics get them."""
    from lmms_eval.api.instance import unwrap_generation_output

    return [unwrap_generation_output(one)[0] for one in found]


def test_likelihoods_are_those_of_the_library(made):
    """Of questions with no, one and several pictures; of choices, lmms-eval takes the least."""
    lightkv = made()
    found = pairs(lightkv.loglikelihood(likelihood_requests()))
    expected = []
    with attached(lightkv.model):
        for (text, shown), choices in zip(DOCUMENTS, CHOICES, strict=False):
            content = [{"type": "image"}] * len(shown) + [{"type": "text", "text": text}]
            prompt = lightkv.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            inputs = lightkv.processor(
                text=prompt,
                images=shown or None,
                return_tensors="pt",
                **prompts.marks(lightkv.processor, prompt),
            )
            ids = [answer_ids(lightkv.processor.tokenizer, prompt, choice) for choice in choices]
            expected += score(lightkv.model, inputs, ids)
    assert found == [(pytest.approx(-one.log_likelihood), one.greedy) for one in expected]
    assert len({value for value, _ in found}) == len(found)
    account = lightkv._accounts["own"]
    assert account.questions == 2  # with pictures
    assert account.first_token > 0


def test_a_target_gets_its_log_likelihood(made):
    lightkv = made()
    requests = likelihood_requests()
    chosen = pairs(lightkv.loglikelihood(requests))
    for request in requests:
        text, choice, *others = request.arguments
        request.arguments = (text, lambda document, choice=choice: choice, *others)
    told = pairs(lightkv.loglikelihood(requests))
    assert told == [(-value, greedy) for value, greedy in chosen]
    assert all(value < 0 for value, _ in told)


def test_likelihoods_that_only_make_processes_alike_are_not_asked(made):
    found = pairs(made().loglikelihood(likelihood_requests(__padding_only__=True)))
    assert found == [(0.0, False)] * 5


def test_answers_without_a_question_and_rounds_are_refused(made):
    lightkv = made()
    (request, *_) = likelihood_requests()
    request.arguments = ("", "yes")
    with pytest.raises(lk.UnsupportedInputError, match=r"2 arguments, .* acc_mutual_info"):
        lightkv.loglikelihood([request])
    with pytest.raises(lk.UnsupportedInputError, match="one question at a time"):
        lightkv.generate_until_multi_round([])


def test_each_process_has_a_device_of_its_own():
    from lightkv_gnn.harness.lmms import device_of

    one = SimpleNamespace(device="cuda:0", num_processes=1)
    two = SimpleNamespace(device="cuda:1", num_processes=2)
    assert device_of(None, one) == "cuda:0"
    assert device_of("cpu", one) == "cpu"
    assert device_of("cuda:3", one) == "cuda:3"
    assert device_of(None, two) == "cuda:1"
    assert device_of("cpu", two) == "cpu"
    with pytest.raises(ValueError, match="cuda:3 with 2 processes: leave it out"):
        device_of("cuda:3", two)
