// What a page does: docs/opentelemetry.md, Browser. The test bundles it with esbuild and calls `record`.
import { OTLPLogExporter } from "@opentelemetry/exporter-logs-otlp-http";
import { OTLPMetricExporter, AggregationTemporalityPreference } from "@opentelemetry/exporter-metrics-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BatchLogRecordProcessor, LoggerProvider } from "@opentelemetry/sdk-logs";
import { MeterProvider, PeriodicExportingMetricReader } from "@opentelemetry/sdk-metrics";

self.record = async (url, user, session, headers) => {
  const resource = resourceFromAttributes({ "user.id": user, "session.id": session });
  const logExporter = new OTLPLogExporter({ url: `${url}/v1/logs`, headers });
  const loggers = new LoggerProvider({ resource, processors: [new BatchLogRecordProcessor({ exporter: logExporter })] });
  loggers.getLogger("page").emit({ eventName: "voice_sentiment", body: 0.25 });
  await loggers.forceFlush();

  const exporter = new OTLPMetricExporter({
    url: `${url}/v1/metrics`,
    headers,
    temporalityPreference: AggregationTemporalityPreference.DELTA,
  });
  const reader = new PeriodicExportingMetricReader({ exporter, exportIntervalMillis: 1e9 });
  const meters = new MeterProvider({ resource, readers: [reader] });
  meters.getMeter("page").createCounter("talked_time").add(2.5);
  await meters.forceFlush();
};
