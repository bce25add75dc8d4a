"""A page over the model: read a film, see where a sentence is, draw a report, change a film.

    python app.py [--checkpoint out/mine-gen256]    # demo/ if none is named; http://127.0.0.1:7860

It needs `pip install -r requirements-app.txt`, answers this machine alone and sends nothing
anywhere. One job runs at a time, others wait. For research, not for clinical use.
"""
import importlib.util
import socket
import sys
import time
from dataclasses import dataclass
from typing import Literal

from PIL import Image

import sample
import weights
from abilities import edit, explain
from abilities.wording import with_statement
from common.cli import InputError, cli, override
from common.images import read_image
from common.processes import DTYPES, number_format, setup, torch_dtype
from vision import preprocess
from weights.int8 import MATRICES
from weights.knowledge import notice, unknown_words


@dataclass
class AppConfig:
    checkpoint: str = sample.SampleConfig.checkpoint    # checkpoint directory or run
    port: int = 7860            # of http://127.0.0.1
    device: str = "auto"        # auto, cpu, cuda, mps
    dtype: Literal[*DTYPES] = "auto"    # number format of the weights; auto: the fastest here
    weights: Literal[*MATRICES] = "float"       # int8: large matrices as 8-bit integers
    threads: int = 0            # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        assert 1 <= self.port < 65535, f"--port {self.port} is none; 1 to 65534."


def told(job):
    """A job whose bad input ends in the page's own error, and which says how long it took."""
    import gradio as gr

    def run(*inputs):
        began = time.perf_counter()
        try:
            outputs = job(*inputs)
        except InputError as error:
            raise gr.Error(str(error), duration=None) from None
        return *outputs, f"{time.perf_counter() - began:.1f} seconds"
    return run


# ---- the jobs ----

class Jobs:
    """What the page can do. Pictures are PIL images, films are paths of files."""

    def __init__(self, model, vae, tokenizer):
        self.parts = self.model, _, self.tokenizer = model, vae, tokenizer
        self.side = sample.latent_side(model, vae, 0) * vae.factor      # pixels of what is drawn

    def film(self, path):
        """A file -> (S, S) uint8 of the size that is drawn."""
        if not path:
            raise InputError("choose a film first: PNG, JPEG, TIFF or DICOM.")
        return preprocess(read_image(path), self.side, 0).numpy()

    def report_of(self, film):
        """What the model writes about a film (S, S) uint8."""
        vision = self.model.cfg.vision
        small = preprocess(Image.fromarray(film), vision.image_size, vision.pad)
        return sample.generate_reports(self.model, self.tokenizer, small[None], progress=False)[0]

    def read(self, path):
        """-> the film, its report, and the sentences that can be looked for."""
        film = self.film(path)
        report = self.report_of(film)
        return Image.fromarray(film), report, explain.statements(report)

    def where(self, path, report, statement):
        """-> the film with the heat of one sentence over it."""
        if not statement:
            raise InputError("read a film, then choose one of its sentences.")
        film = self.film(path)
        [heat] = explain.heat_maps(*self.parts, [film], [report], [statement])
        return (Image.fromarray(explain.overlay(film, heat)),)

    def draw(self, report, steps, guidance, seed):
        """-> the picture, and a word about words that mean nothing to the model."""
        sample.check_report("the report", report, self.model, self.tokenizer)
        if seed is None:
            raise InputError("the seed is empty; write a whole number.")
        sampling = sample.Sampling(steps=int(steps), cfg=float(guidance), seed=int(seed))
        picture = sample.generate_images(*self.parts, [report], sampling, progress=False)[0, 0]
        unknown = ", ".join(unknown_words(self.model, self.tokenizer, [report]))
        return Image.fromarray(picture), f"unknown to these weights: {unknown}" if unknown else ""

    def change(self, path, statement, strength):
        """-> the film, the changed film, and what the model reads before and after."""
        film = self.film(path)
        source = self.report_of(film)
        if not statement.strip():
            raise InputError('say what should be there, as "Large left pleural effusion."')
        wanted = with_statement(source, statement)
        sample.check_report("the wanted report", wanted, self.model, self.tokenizer)
        editing = edit.Editing(strength=float(strength))
        changed = edit.edit_images(*self.parts, film[None], [source], [wanted], editing)[0]
        words = f"before: {source}\n\nwanted: {wanted}\n\nafter: {self.report_of(changed)}"
        return Image.fromarray(film), Image.fromarray(changed), words


# ---- the page ----

def page(jobs, warning):
    """The page, with a tab for each job."""
    import gradio as gr

    def film_input(name):
        return gr.File(label="film: PNG, JPEG, TIFF or DICOM", type="filepath", elem_id=name)

    def picture(label, name):
        return gr.Image(label=label, type="pil", format="png", interactive=False, elem_id=name,
                        height=512, buttons=["download", "fullscreen"])

    example = "Large left pleural effusion."
    with gr.Blocks(title="open UniX", analytics_enabled=False) as blocks:
        gr.Markdown(f"# open UniX\n**For research, not for clinical use.** {warning}")
        with gr.Tab("Read"):
            with gr.Row():
                with gr.Column():
                    film = film_input("read-film")
                    go = gr.Button("Read", variant="primary", elem_id="read-go")
                    report = gr.Textbox(label="report", lines=4, elem_id="read-report",
                                        interactive=False)
                    sentence = gr.Radio([], label="where is", elem_id="read-sentence")
                    took = gr.Textbox(label="took", elem_id="read-took")
                shown = picture("film", "read-picture")

            def read(path):
                image, text, found, seconds = told(jobs.read)(path)
                return image, text, gr.Radio(found, value=None), seconds
            of_film = [shown, report, sentence, took]
            film.change(lambda: (None, "", gr.Radio([], value=None), ""), None, of_film)
            run(go.click, read, [film], of_film)
            run(sentence.input, told(jobs.where), [film, report, sentence], [shown, took])
        with gr.Tab("Draw"):
            with gr.Row():
                with gr.Column():
                    text = gr.Textbox(example, label="report", lines=4)
                    steps = gr.Slider(1, 64, 16, step=1, label="steps")
                    guidance = gr.Slider(1, 6, 2, step=0.1, label="guidance")
                    seed = gr.Number(0, label="seed", precision=0)
                    go = gr.Button("Draw", variant="primary", elem_id="draw-go")
                    words = gr.Textbox(label="note")
                    took = gr.Textbox(label="took", elem_id="draw-took")
                drawn = picture("picture", "draw-picture")
            run(go.click, told(jobs.draw), [text, steps, guidance, seed], [drawn, words, took])
        with gr.Tab("Change"):
            with gr.Row():
                with gr.Column():
                    film = film_input("change-film")
                    statement = gr.Textbox(example, label="what should be there",
                                           elem_id="change-statement")
                    strength = gr.Slider(0.1, 1, 0.9, step=0.05, label="strength")
                    go = gr.Button("Change", variant="primary", elem_id="change-go")
                    words = gr.Textbox(label="reports", lines=6, elem_id="change-words")
                    took = gr.Textbox(label="took", elem_id="change-took")
                shown = [picture(word, f"change-{word}") for word in ("before", "after")]
            run(go.click, told(jobs.change), [film, statement, strength], [*shown, words, took])
    return blocks


def run(event, job, inputs, outputs):
    """Have an event start a job; all jobs share one queue, of one job at a time."""
    event(job, inputs, outputs, concurrency_id="device", concurrency_limit=1)


def main(argv):
    cfg = override(AppConfig(), argv, __doc__)
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs gradio: pip install -r requirements-app.txt.")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", cfg.port)) == 0:
            raise InputError(f"port {cfg.port} is in use; take another, --port {cfg.port + 1}.")
    device = setup(cfg.device, cfg.threads).device
    dtype = torch_dtype(number_format(cfg.dtype, device))
    model, vae, tokenizer = weights.load(cfg.checkpoint, True, dtype, device, cfg.weights)
    print(f"{notice(model)}\nThe page: http://127.0.0.1:{cfg.port}", file=sys.stderr)
    import gradio as gr
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    page(Jobs(model, vae, tokenizer), notice(model)).launch(
        server_name="127.0.0.1", server_port=cfg.port, share=False, quiet=True, theme=theme,
        css=".image-frame img { width: 100%; height: 100%; object-fit: contain }")      # enlarged


if __name__ == "__main__":
    cli(main)
