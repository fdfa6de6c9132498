#!/usr/bin/env bash
# Build, push, migrate and deploy every function to Cloud Run; run it again for the next version, or after a failure.
#
#   PROJECT=my-project REGION=europe-west1 INSTANCE=metrics deploy/deploy.sh     or: make deploy PROJECT=… REGION=… INSTANCE=…
#   DRY_RUN=1 …        print every command and run none
#   IMAGE=… DB_HOST=… deploy/deploy.sh manifests     fills the templates in for any Knative cluster: kubectl apply -f .local/manifests
#   … deploy/deploy.sh undo        sends all requests to the revision before the latest, of each function
#   … deploy/deploy.sh destroy     lists what this script made, asks, and deletes it; the database and its instance stay
#
# INSTANCE is a Cloud SQL instance in PROJECT and REGION, or PROJECT:REGION:INSTANCE. The other settings are below.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "deploy: $*" >&2; exit 1; }

DRY_RUN=${DRY_RUN:-}
PROJECT=${PROJECT:-}
REGION=${REGION:-}
INSTANCE=${INSTANCE:-}
case ${1:-deploy} in
  deploy | undo | destroy)
    if [ -n "$DRY_RUN" ]; then # a rehearsal needs no account, nor names
      PROJECT=${PROJECT:-PROJECT} REGION=${REGION:-REGION} INSTANCE=${INSTANCE:-INSTANCE}
    fi
    for name in PROJECT REGION INSTANCE; do
      [ -n "${!name}" ] || fail "$name is not set; try: make deploy PROJECT=… REGION=… INSTANCE=… [DRY_RUN=1]"
    done
    ;;
  manifests)
    for name in IMAGE DB_HOST; do
      [ -n "${!name:-}" ] || fail "$name is not set; try: IMAGE=… DB_HOST=… deploy/deploy.sh manifests"
    done
    SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
    ;;
  *) fail "unknown argument $1; there are: manifests, undo, destroy" ;;
esac

PREFIX=${PREFIX:-metrics}                                    # of every name that this makes
AUTH=${AUTH:-keys}                                           # keys: anyone may call, the function asks for an API key; iam: Cloud Run does
INGRESS=${INGRESS:-all}                                      # internal-and-cloud-load-balancing behind a load balancer
MIN_INSTANCES=${MIN_INSTANCES:-0}                            # per function
MAX_INSTANCES=${MAX_INSTANCES:-10}                           # per function
CONCURRENCY=${CONCURRENCY:-80}                               # requests at once in an instance
BATCH_CONCURRENCY=${BATCH_CONCURRENCY:-8}                    # the same of ingest_batch and ingest_otlp, whose requests are large
CPU=${CPU:-1}
MEMORY=${MEMORY:-512Mi}
WORKERS=${WORKERS:-1}                                        # processes in an instance; one for each CPU
WRITE_LANES=${WRITE_LANES:-2}                                # database connections of a process
DB_CONNECTIONS=${DB_CONNECTIONS:-100}                        # the instance's max_connections
DB_RESERVED=${DB_RESERVED:-10}                               # of these, for jobs, psql and the server itself
DB_SSLMODE=${DB_SSLMODE:-}                                   # by default require, but for a Unix socket
DB_NAME=${DB_NAME:-metrics_db}
DB_OWNER=${DB_OWNER:-metrics_user}                           # of the tables: migrations and maintenance
DB_OWNER_PASSWORD_SECRET=${DB_OWNER_PASSWORD_SECRET:-$PREFIX-db-password}
DB_USER=${DB_USER:-metrics_writer}                           # of the functions; the migration lets metrics_writer log in
DB_PASSWORD_SECRET=${DB_PASSWORD_SECRET:-$PREFIX-db-writer-password}
API_KEYS_SECRET=${API_KEYS_SECRET:-$PREFIX-api-keys}
DB_READER=${DB_READER:-metrics_reader}                       # of the dashboard
DB_READER_PASSWORD_SECRET=${DB_READER_PASSWORD_SECRET:-$PREFIX-db-reader-password}
READ_KEYS_SECRET=${READ_KEYS_SECRET:-$PREFIX-read-keys}      # of those who may open the dashboard
MAINTENANCE_SCHEDULE=${MAINTENANCE_SCHEDULE:-17 3 * * *}     # UTC
SUMMARIES_SCHEDULE=${SUMMARIES_SCHEDULE:-*/5 * * * *}        # each run is billed for at least a minute

FUNCTIONS=(dashboard ingest ingest_batch ingest_otlp users)
MANIFESTS=${MANIFESTS:-.local/${1:-deploy}}                     # where the filled templates go
case $INSTANCE in *:*) CONNECTION=$INSTANCE ;; "") CONNECTION= ;; *) CONNECTION=$PROJECT:$REGION:$INSTANCE ;; esac
DB_HOST=${DB_HOST:-/cloudsql/$CONNECTION}
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-$PREFIX-ingest@$PROJECT.iam.gserviceaccount.com}
TAG=${TAG:-$(git describe --always --abbrev=12 --dirty="-$(date +%s)" --exclude '*' 2>/dev/null || date +%Y%m%d-%H%M%S)}
IMAGE=${IMAGE:-$REGION-docker.pkg.dev/$PROJECT/$PREFIX/metrics-ingest:$TAG}
# shellcheck disable=SC2034  # fill() reads them by name
case $AUTH in
  keys) ALLOW_ANONYMOUS=false PUBLIC=true ;;
  iam) ALLOW_ANONYMOUS=true PUBLIC=false ;;
  *) fail "AUTH must be keys or iam, not $AUTH" ;;
esac

# check PATTERN NAME…: refuse a setting that does not match the pattern as a whole, because it becomes part of commands and of YAML
check() {
  local pattern="^($1)$" name
  for name in "${@:2}"; do
    [[ ${!name} =~ $pattern ]] || fail "$name must match $pattern, not '${!name}'"
  done
}
check '0|[1-9][0-9]{0,4}' MIN_INSTANCES MAX_INSTANCES CONCURRENCY BATCH_CONCURRENCY WORKERS WRITE_LANES DB_CONNECTIONS DB_RESERVED
check '[a-z]([a-z0-9-]{0,28}[a-z0-9])?' PREFIX
check '|[A-Za-z]([A-Za-z0-9.:-]*[A-Za-z0-9])?' PROJECT REGION INSTANCE CONNECTION
check '[A-Za-z0-9_-]{1,255}' DB_PASSWORD_SECRET DB_OWNER_PASSWORD_SECRET DB_READER_PASSWORD_SECRET API_KEYS_SECRET READ_KEYS_SECRET
check '[A-Za-z0-9_.@-]{1,63}' DB_NAME DB_USER DB_OWNER DB_READER
check '/[A-Za-z0-9_.:/-]+|[A-Za-z0-9.:-]+' DB_HOST
check '|disable|prefer|require|verify-ca|verify-full' DB_SSLMODE
check 'all|internal|internal-and-cloud-load-balancing' INGRESS
check '[0-9]{1,3}(\.[0-9]{1,3})?|[0-9]{1,6}m' CPU
check '[1-9][0-9]{0,5}(Mi|Gi|M|G)' MEMORY
check '[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}' TAG
check '[A-Za-z0-9][A-Za-z0-9_.:/@-]*' IMAGE
check '[a-zA-Z0-9][a-zA-Z0-9.:@-]*' SERVICE_ACCOUNT
check '[-0-9A-Za-z*/,]+( [-0-9A-Za-z*/,]+){4}' MAINTENANCE_SCHEDULE SUMMARIES_SCHEDULE

# An instance that scales out must find a connection: all of them together, and not one more than the database has.
# The dashboard has one for each process, every other function WRITE_LANES.
writing=$((${#FUNCTIONS[@]} - 1))
needed=$((MAX_INSTANCES * WORKERS * (WRITE_LANES * writing + 1)))
budget=$((DB_CONNECTIONS - DB_RESERVED))
arithmetic="$MAX_INSTANCES instances × $WORKERS workers × ($WRITE_LANES lanes × $writing functions + 1 of the dashboard) = $needed connections"
[ "$needed" -le "$budget" ] || fail "$arithmetic, but the database has $budget to give \
($DB_CONNECTIONS less $DB_RESERVED reserved); lower MAX_INSTANCES, or raise DB_CONNECTIONS with the instance's max_connections"
echo "# $arithmetic, of $budget" >&2

# fill TEMPLATE NAME: write the template with its ${…} replaced as $MANIFESTS/NAME.yaml
fill() {
  local text name
  text=$(<"deploy/$1")
  for name in API_KEYS ARGUMENTS CONCURRENCY CONNECTION CPU DB_HOST DB_NAME DB_OWNER DB_OWNER_PASSWORD_SECRET DB_PASSWORD_SECRET DB_SSLMODE DB_USER \
    ALLOW_ANONYMOUS API_KEYS_SECRET DB_READER_PASSWORD_SECRET FUNCTION IMAGE INGRESS JOB MAINTENANCE_SCHEDULE MAX_INSTANCES MEMORY \
    MIN_INSTANCES PREFIX PROJECT PUBLIC SERVICE SERVICE_ACCOUNT SUMMARIES_SCHEDULE TAG WORKERS WRITE_LANES; do
    text=${text//"\${$name}"/"${!name:-}"}
  done
  while IFS= read -r line; do
    [[ $AUTH = keys || $line != *"# AUTH=keys" ]] || continue
    [[ $DB_USER = metrics_writer && $2 != ma* && $2 != su* || $line != *"# DB_USER=metrics_writer" ]] || continue
    [[ $DB_READER = metrics_reader && $2 != ma* && $2 != su* || $line != *"# DB_READER=metrics_reader" ]] || continue
    printf '%s\n' "$line"
  done <<<"$text" >"$MANIFESTS/$2.yaml"
}
# service FUNCTION: the name of its service; the prefix "metrics" and the function "metrics_x" do not repeat the word
service() {
  local name="$PREFIX-${1//_/-}"
  echo "${name/#"$PREFIX-$PREFIX-"/"$PREFIX-"}"
}

# run COMMAND…: show it, and run it unless this is a rehearsal
run() {
  printf '%q ' "$@"
  echo
  [ -n "$DRY_RUN" ] || "$@"
}

if [ "${1:-}" = undo ]; then # the schema stays: migrations only add, so the revision before works with it
  for function in "${FUNCTIONS[@]}"; do
    name=$(service "$function")
    before=$(gcloud run revisions list --service="$name" --project="$PROJECT" --region="$REGION" --sort-by=~metadata.creationTimestamp \
      --format='value(metadata.name)' --limit=2 | sed -n 2p)
    [ -n "$before" ] || fail "$name has no revision before the latest"
    run gcloud run services update-traffic "$name" --project="$PROJECT" --region="$REGION" --to-revisions="$before=100"
  done
  echo "# the next deployment goes on from here; until then new revisions get no requests" >&2
  exit
fi
if [ "${1:-}" = destroy ]; then
  in_region=(--project="$PROJECT" --region="$REGION" --quiet)
  echo "This deletes, in $PROJECT and $REGION:"
  for function in "${FUNCTIONS[@]}"; do echo "  service $(service "$function")"; done
  for job in migrate maintain summaries; do echo "  job $PREFIX-$job, and its schedule"; done
  echo "  repository $PREFIX with all images; service account $SERVICE_ACCOUNT"
  echo "The Cloud SQL instance, its data and the secrets stay."
  if [ -z "$DRY_RUN" ]; then
    read -r -p "Type the prefix ($PREFIX) to go on: " answer || true
    [ "${answer:-}" = "$PREFIX" ] || fail "not confirmed, nothing was deleted"
  fi
  failed=
  for job in maintain summaries; do
    run gcloud scheduler jobs delete "$PREFIX-$job" --project="$PROJECT" --location="$REGION" --quiet || failed=1
  done
  for function in "${FUNCTIONS[@]}"; do run gcloud run services delete "$(service "$function")" "${in_region[@]}" || failed=1; done
  for job in migrate maintain summaries; do run gcloud run jobs delete "$PREFIX-$job" "${in_region[@]}" || failed=1; done
  run gcloud artifacts repositories delete "$PREFIX" --project="$PROJECT" --location="$REGION" --quiet || failed=1
  run gcloud iam service-accounts delete "$SERVICE_ACCOUNT" --project="$PROJECT" --quiet || failed=1
  [ -z "$failed" ] || fail "some of it could not be deleted: see above; it may be gone already"
  exit
fi

# Only a directory that an earlier run made is emptied: MANIFESTS may name one that holds other people's files.
made=$MANIFESTS/.made-by-deploy.sh
if [ -e "$MANIFESTS" ] && [ ! -e "$made" ] && [ -n "$(ls -A "$MANIFESTS")" ]; then
  fail "MANIFESTS=$MANIFESTS holds files that this script did not write; name a new or an empty directory"
fi
[ ! -e "$made" ] || rm -f "$MANIFESTS"/*.yaml
mkdir -p "$MANIFESTS" && touch "$made"
for function in "${FUNCTIONS[@]}"; do
  concurrency=$CONCURRENCY
  case $function in ingest_batch | ingest_otlp) concurrency=$BATCH_CONCURRENCY ;; esac
  if [ "$function" = dashboard ]; then
    # It has keys and a role of its own. A template has one name for each: those of this function.
    FUNCTION=$function SERVICE=$(service "$function") DB_USER=$DB_READER DB_PASSWORD_SECRET=$DB_READER_PASSWORD_SECRET \
      API_KEYS=READ_KEYS API_KEYS_SECRET=$READ_KEYS_SECRET fill service.yaml "$function"
  else
    FUNCTION=$function SERVICE=$(service "$function") CONCURRENCY=$concurrency API_KEYS=API_KEYS fill service.yaml "$function"
  fi
done
if [ "${1:-}" = manifests ]; then
  fill kubernetes-jobs.yaml jobs
  echo "$MANIFESTS"
  exit
fi
JOB="$PREFIX-migrate" ARGUMENTS="[migrate]" fill job.yaml migrate
JOB="$PREFIX-maintain" ARGUMENTS="[partitions, maintain]" fill job.yaml maintain
JOB="$PREFIX-summaries" ARGUMENTS="[summaries, refresh]" fill job.yaml summaries

# unless DESCRIBE… -- MAKE…: run the second command where the first, which describes what it makes, fails
unless() {
  local describe=()
  while [ "$1" != -- ]; do describe+=("$1") && shift; done
  shift
  if [ -n "$DRY_RUN" ]; then
    printf 'if ! '
    printf '%q ' "${describe[@]}"
    case $1 in
      no_secret) printf '\nthen exit 1 # docs/deploy.md, "Once", says how to make it\n' ;;
      new_password) printf '\nthen openssl rand -hex 24 | gcloud secrets create %s --project=%s --data-file=-\n' "$2" "$PROJECT" ;;
      *) printf '\nthen ' && run "$@" ;;
    esac
    echo "fi"
  elif ! "${describe[@]}" >/dev/null 2>&1; then
    run "$@"
  fi
}
in_region=(--project="$PROJECT" --region="$REGION")

run gcloud services enable --project="$PROJECT" run.googleapis.com sqladmin.googleapis.com secretmanager.googleapis.com \
  artifactregistry.googleapis.com cloudbuild.googleapis.com cloudscheduler.googleapis.com

# The account that the functions run as: it may reach the database and read its secrets, and nothing else.
unless gcloud iam service-accounts describe "$SERVICE_ACCOUNT" --project="$PROJECT" -- \
  gcloud iam service-accounts create "${SERVICE_ACCOUNT%%@*}" --project="$PROJECT" --display-name="metrics-ingest functions"
run gcloud projects add-iam-policy-binding "$PROJECT" --member="serviceAccount:$SERVICE_ACCOUNT" --role=roles/cloudsql.client \
  --condition=None --format=none
# no_secret NAME: say which secret somebody has to make
no_secret() { fail "there is no secret $1 in $PROJECT; docs/deploy.md, \"Once\", says how to make it"; }
# new_password NAME: make a secret of a random password, which the migration gives to its role
new_password() { openssl rand -hex 24 | tr -d '\n' | gcloud secrets create "$1" --project="$PROJECT" --data-file=-; }
own=("$DB_OWNER_PASSWORD_SECRET")
[ "$AUTH" = iam ] || own+=("$API_KEYS_SECRET" "$READ_KEYS_SECRET")
for secret in "${own[@]}"; do
  unless gcloud secrets describe "$secret" --project="$PROJECT" -- no_secret "$secret"
done
[ "$DB_USER" != metrics_writer ] || unless gcloud secrets describe "$DB_PASSWORD_SECRET" --project="$PROJECT" -- new_password "$DB_PASSWORD_SECRET"
[ "$DB_READER" != metrics_reader ] || unless gcloud secrets describe "$DB_READER_PASSWORD_SECRET" --project="$PROJECT" -- new_password "$DB_READER_PASSWORD_SECRET"
mapfile -t secrets < <(printf '%s\n' "${own[@]}" "$DB_PASSWORD_SECRET" "$DB_READER_PASSWORD_SECRET" | sort -u)
for secret in "${secrets[@]}"; do
  run gcloud secrets add-iam-policy-binding "$secret" --project="$PROJECT" --member="serviceAccount:$SERVICE_ACCOUNT" \
    --role=roles/secretmanager.secretAccessor --format=none
done

unless gcloud artifacts repositories describe "$PREFIX" --project="$PROJECT" --location="$REGION" -- \
  gcloud artifacts repositories create "$PREFIX" --project="$PROJECT" --location="$REGION" --repository-format=docker
unless gcloud artifacts docker images describe "$IMAGE" --project="$PROJECT" -- \
  gcloud builds submit --project="$PROJECT" --region="$REGION" --tag="$IMAGE" --ignore-file=.dockerignore .

# The schema first: migrations add before the code that needs them, so the running version goes on meanwhile.
run gcloud run jobs replace "$MANIFESTS/migrate.yaml" "${in_region[@]}"
run gcloud run jobs execute "$PREFIX-migrate" "${in_region[@]}" --wait

for function in "${FUNCTIONS[@]}"; do
  run gcloud run services replace "$MANIFESTS/$function.yaml" "${in_region[@]}"
done

# schedule NAME CRON: run the job of that name at these times
schedule() {
  local job="$PREFIX-$1"
  local settings=(--project="$PROJECT" --location="$REGION" --schedule="$2" --time-zone=Etc/UTC --http-method=POST
    --oauth-service-account-email="$SERVICE_ACCOUNT" --uri="https://run.googleapis.com/v2/projects/$PROJECT/locations/$REGION/jobs/$job:run")
  run gcloud run jobs replace "$MANIFESTS/$1.yaml" "${in_region[@]}"
  run gcloud run jobs add-iam-policy-binding "$job" "${in_region[@]}" --member="serviceAccount:$SERVICE_ACCOUNT" \
    --role=roles/run.invoker --format=none
  unless gcloud scheduler jobs describe "$job" --project="$PROJECT" --location="$REGION" -- \
    gcloud scheduler jobs create http "$job" "${settings[@]}"
  run gcloud scheduler jobs update http "$job" "${settings[@]}"
}
schedule maintain "$MAINTENANCE_SCHEDULE"
schedule summaries "$SUMMARIES_SCHEDULE"

for function in "${FUNCTIONS[@]}"; do
  run gcloud run services describe "$(service "$function")" "${in_region[@]}" --format='value(status.url)'
done
