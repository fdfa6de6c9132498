# Containers and the cloud; included by the Makefile.
DOCKER_COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.PHONY: up down logs test-containers deploy deploy-undo destroy

up: ## Start database, functions and gateway in Docker, on http://127.0.0.1:8000 [PORT=8000]
	@$(DOCKER_COMPOSE) up --build --detach

down: ## Stop what `make up` started; the data stays
	@$(DOCKER_COMPOSE) down

logs: ## Follow the logs of what `make up` started
	@$(DOCKER_COMPOSE) logs --follow --tail 100

test-containers: install ## Test the image and the Compose stack on this machine's Docker engine [ARGS=…]
	@$(BIN)/python -m pytest -rs tests/containers $(ARGS)

deploy: ## Build, push, migrate and deploy to Cloud Run: PROJECT= REGION= INSTANCE= [DRY_RUN=1]
	@deploy/deploy.sh

deploy-undo: ## Send all requests to the revision before the latest: PROJECT= REGION= INSTANCE=
	@deploy/deploy.sh undo

destroy: ## List what `make deploy` made, ask, and delete it; the database stays: PROJECT= REGION= INSTANCE=
	@deploy/deploy.sh destroy
