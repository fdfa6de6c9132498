// Records what ../record.py does, by the OpenTelemetry SDK for JavaScript. OTLP_FORMAT is json or protobuf.
import { OTLPLogExporter as JsonLogs } from "@opentelemetry/exporter-logs-otlp-http";
import { OTLPLogExporter as ProtobufLogs } from "@opentelemetry/exporter-logs-otlp-proto";
import { OTLPMetricExporter as JsonMetrics } from "@opentelemetry/exporter-metrics-otlp-http";
import { OTLPMetricExporter as ProtobufMetrics } from "@opentelemetry/exporter-metrics-otlp-proto";
import { detectResources, envDetector } from "@opentelemetry/resources";
import { BatchLogRecordProcessor, LoggerProvider } from "@opentelemetry/sdk-logs";
import { MeterProvider, PeriodicExportingMetricReader } from "@opentelemetry/sdk-metrics";

const [signal, session, other] = process.argv.slice(2);
const protobuf = process.env.OTLP_FORMAT === "protobuf";
const resource = detectResources({ detectors: [envDetector] });
let exported = true;
setInterval(() => {}, 1e6); // the SDK's timers do not keep the process alive while it waits to send again
try {
  if (signal === "metrics") {
    const exporter = protobuf ? new ProtobufMetrics() : new JsonMetrics();
    const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 1e9, exportTimeoutMillis: 2e4 });
    const meters = new MeterProvider({ resource, readers: [reader] });
    const meter = meters.getMeter("tests");
    const talked = meter.createCounter("talked.time", { unit: "s" });
    talked.add(1.5, { "session.id": session });
    talked.add(2, { "session.id": session });
    talked.add(4, { "session.id": other });
    meter.createGauge("voice_sentiment").record(0.5);
    const call = meter.createHistogram("call-length", { unit: "s" });
    call.record(10);
    call.record(20.5);
    console.log("exporting");
    await meters.forceFlush();
  } else {
    const exporter = protobuf ? new ProtobufLogs() : new JsonLogs();
    const processor = new BatchLogRecordProcessor({ exporter });
    const loggers = new LoggerProvider({ resource, processors: [processor] });
    const logger = loggers.getLogger("tests");
    logger.emit({ timestamp: new Date(), eventName: "voice.sentiment", body: -0.25 });
    logger.emit({ eventName: "microphone_used", body: true, attributes: { "session.id": session } });
    logger.emit({ timestamp: new Date(), eventName: "talked_time", body: "a text", attributes: { value: 7 } });
    console.log("exporting");
    await loggers.forceFlush();
  }
} catch (error) {
  console.error(error);
  exported = false;
}
console.log(exported ? "exported" : "not exported");
process.exit(); // a second export at the end is no part of this
