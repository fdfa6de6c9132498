"""Records a few metrics and events by the OpenTelemetry SDK for Python, and exports them as its environment says.

It prints whether the SDK could export them. test_sdks.py and test_faults.py run it; js/record.js does the same.
"""

import os
import sys
import time

from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

signal, session, other = sys.argv[1:]
exported = True
if signal == "metrics":
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=10**9)
    meters = MeterProvider(metric_readers=[reader])
    meter = meters.get_meter("tests")
    talked = meter.create_counter("talked.time", unit="s")
    talked.add(1.5, {"session.id": session})
    talked.add(2, {"session.id": session})
    talked.add(4, {"session.id": other})
    meter.create_gauge("voice_sentiment").set(0.5)
    call = meter.create_histogram("call-length", unit="s")
    call.record(10)
    call.record(20.5)
    print("exporting", flush=True)  # noqa: T201  # the test waits for it
    exported = meters.force_flush(20_000)
else:
    loggers = LoggerProvider()
    loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
    logger = loggers.get_logger("tests")
    logger.emit(timestamp=time.time_ns(), event_name="voice.sentiment", body=-0.25)
    logger.emit(event_name="microphone_used", body=True, attributes={"session.id": session})
    logger.emit(timestamp=time.time_ns(), event_name="talked_time", body="a text", attributes={"value": 7})
    print("exporting", flush=True)  # noqa: T201
    exported = loggers.force_flush(20_000)
print("exported" if exported else "not exported", flush=True)  # noqa: T201
os._exit(0)  # a second export at the end is no part of this
