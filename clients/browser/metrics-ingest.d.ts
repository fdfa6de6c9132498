/** A metric as it is sent to ingest_batch. */
export interface Metric {
  user_id: string;
  metric_type: string;
  value: number | boolean;
  /** RFC 3339, with an offset. */
  timestamp: string;
  session_id?: string;
  metric_id: string;
}

export interface Rejection {
  /** One of the function's error codes; `http_<status>` when the answer has none. */
  code: string;
  field?: string | null;
  detail?: string | null;
  /** The metric that was refused. Null: all requests are, as with a wrong key, or the value is none that JSON can say. */
  metric: Metric | null;
}

export interface Options {
  /** The address of the functions, such as `https://metrics.example.com`; `/ingest_batch/` is appended. */
  url: string;
  /** A write key. Leave it out where none is needed. */
  key?: string;
  /** The registered user whose metrics these are: a UUID. */
  userId: string;
  /** A UUID. Left out: the user's implicit session of the day. */
  sessionId?: string;
  /** How long a metric may wait for others, in milliseconds. Default: 5000. */
  flushMs?: number;
  /** How many metrics a request has at most. Default: 500. */
  maxBatch?: number;
  /** How many metrics wait at most; the oldest are dropped. Default: 10000. */
  maxQueue?: number;
  /** Called once for each metric that was refused, in the tab that sent it. */
  onRejected?: (rejection: Rejection) => void;
  /** Called with how many of the oldest metrics were dropped because of `maxQueue`. */
  onDropped?: (count: number) => void;
}

export interface RecordOptions {
  /** When it happened: a Date, milliseconds since 1970, or RFC 3339 text with an offset. Default: now. */
  timestamp?: Date | number | string;
  sessionId?: string;
}

export interface Client {
  /** Keeps a metric and returns; it is written to IndexedDB before the next frame, and sent within `flushMs`. Never throws. */
  record(metricType: string, value: number | boolean, options?: RecordOptions): void;
  /** Sends what waits. Resolves to whether nothing is left; never rejects. */
  flush(): Promise<boolean>;
  /** Sends what waits and stops; later calls of `record` do nothing. What is left is sent by the next page. */
  close(): Promise<boolean>;
}

/** Makes a client and sends what earlier pages left. Clients of one `url` share a queue, in this tab and in others. */
export function createClient(options: Options): Client;
