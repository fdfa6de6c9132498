DOCKER_COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.PHONY: up down logs test-containers deploy

up: ## start database, functions and gateway in Docker, on http://127.0.0.1:8000 (PORT=8000)
	$(DOCKER_COMPOSE) up --build --detach

down: ## stop what `make up` started; the data stays
	$(DOCKER_COMPOSE) down

logs: ## follow the logs of what `make up` started
	$(DOCKER_COMPOSE) logs --follow --tail 100

test-containers: install ## test the image and the Compose stack on this machine's Docker engine
	$(BIN)/pytest -rs tests/containers

deploy: ## build, push, migrate and deploy to Cloud Run: PROJECT= REGION= INSTANCE= (DRY_RUN=1 prints the commands)
	@PROJECT='$(PROJECT)' REGION='$(REGION)' INSTANCE='$(INSTANCE)' DRY_RUN='$(DRY_RUN)' deploy/deploy.sh
