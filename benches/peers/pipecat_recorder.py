"""Records Twilio media streams with Pipecat, as little as it can: what callseal is compared with in README.md.

Both tracks of a call become one WAV file of two channels, written when the call ends. There is no check of Twilio's
signature, no encryption at rest, no journal and no upload. Everything of Pipecat that a recorder does not need is off.

    python pipecat_recorder.py PORT CERTIFICATE KEY DIRECTORY
"""

import json
import os
import sys
import wave

import uvicorn
from fastapi import FastAPI, WebSocket
from loguru import logger
from pipecat.frames.frames import OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.audio.audio_buffer_processor import AudioBufferProcessor
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.workers.runner import WorkerRunner

RATE = 8000  # of Twilio, so that nothing is resampled
DIRECTORY = "."
app = FastAPI()


class TwoTracks(TwilioFrameSerializer):
    """Pipecat's own class takes every track for the caller's; this one gives the agent's to the other channel."""

    async def deserialize(self, data):
        frame = await super().deserialize(data)
        if frame is not None and '"track":"outbound"' in data:
            return OutputAudioRawFrame(audio=frame.audio, sample_rate=RATE, num_channels=1)
        return frame


@app.websocket("/twilio/v1/t/default")
async def record(socket: WebSocket):
    await socket.accept()
    start = {}
    while start.get("event") != "start":
        start = json.loads(await socket.receive_text())
    call = start["start"]["callSid"]
    serializer = TwoTracks(
        stream_sid=start["start"]["streamSid"], params=TwilioFrameSerializer.InputParams(auto_hang_up=False)
    )
    transport = FastAPIWebsocketTransport(
        websocket=socket, params=FastAPIWebsocketParams(audio_in_enabled=True, serializer=serializer)
    )
    recorder = AudioBufferProcessor(num_channels=2, auto_start_recording=True)
    worker = PipelineWorker(
        Pipeline([transport.input(), recorder]),
        params=PipelineParams(audio_in_sample_rate=RATE, audio_out_sample_rate=RATE),
        enable_turn_tracking=False,
        enable_rtvi=False,
        idle_timeout_secs=None,
    )

    @recorder.event_handler("on_audio_data")
    async def write(_, audio, rate, channels):
        with wave.open(os.path.join(DIRECTORY, f"{call}.wav"), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(audio)

    @transport.event_handler("on_client_disconnected")
    async def end(*_):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    port, certificate, key, DIRECTORY = sys.argv[1:]
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    uvicorn.run(
        app, host="127.0.0.1", port=int(port), ssl_certfile=certificate, ssl_keyfile=key, log_level="warning"
    )
