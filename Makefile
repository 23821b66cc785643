# graftflow: every way to use it, by name. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/sh
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
RUN_READY := $(VENV)/.ready-run
TEST_READY := $(VENV)/.ready-test

# What a run may be told: only what is given on make's command line is passed on.
given = $(if $(filter command,$(firstword $(origin $(1)))),--$(2)='$(subst ','\'',$($(1)))')
PARAMETERS = $(call given,DATASET,dataset) $(call given,BACKBONE,backbone) $(call given,WEIGHTS,weights) \
	$(call given,SEED,seed) $(call given,VALIDATION_FRACTION,validation-fraction) \
	$(call given,TEST_FRACTION,test-fraction) $(call given,HEAD_TYPE,head-type) \
	$(call given,CLASS_WEIGHT,class-weight) $(call given,FINE_TUNE_BLOCKS,fine-tune-blocks) \
	$(call given,FINE_TUNE_VIEWS,fine-tune-views) $(call given,LAYER_DECAY,layer-decay) $(call given,WEIGHT_DECAY,weight-decay) \
	$(call given,LABEL_SMOOTHING,label-smoothing) $(call given,MIXUP,mixup) $(call given,EMA_DECAY,ema-decay) \
	$(call given,AUGMENTATION,augmentation) $(call given,PRECISION,precision) \
	$(call given,MIRRORS,mirrors) $(call given,CACHE,cache) $(call given,SHARDS,shards) \
	$(call given,FINE_TUNE_EPOCHS,fine-tune-epochs) $(call given,LEARNING_RATE,learning-rate) \
	$(call given,MIN_ACCURACY,min-accuracy) $(call given,MIN_ROBUST_ACCURACY,min-robust-accuracy) \
	$(call given,ROBUST_EPSILON,robust-epsilon) $(call given,ADVERSARIAL_TRAINING,adversarial-training) \
	$(call given,ADVERSARIAL_EPSILON,adversarial-epsilon) $(call given,EPSILONS,epsilons) \
	$(call given,ATTACK_STEPS,attack-steps) $(call given,ATTACK_PICTURES,attack-pictures) \
	$(call given,ATTACK_TARGET,attack-target) $(call given,IDEAL_CLASSES,ideal-classes) \
	$(call given,IDEAL_STEPS,ideal-steps) $(call given,VERSION,version) $(call given,STORE,store) \
	$(call given,MODEL_NAME,model-name) $(call given,LABEL,label) $(call given,RUNS,runs)

CODE := src components pipelines manifests benchmarks docker
STORE ?= models
MODEL_NAME ?= graftflow
PORT ?= 8501
GRPC_PORT ?= 8500
URL ?= http://127.0.0.1:$(PORT)

##@ The whole pipeline
.PHONY: run
run: $(RUN_READY) ## Run all steps here: make run DATASET=directory:photos (RUNNER=docker IMAGE=… in containers)
	@$(PY) -m pipelines.run_local $(call given,RUNNER,runner) $(call given,IMAGE,image) $(PARAMETERS)

.PHONY: compile
compile: $(RUN_READY) ## Write the pipeline for a Kubeflow cluster: make compile SETTINGS=pipelines/settings.gpu.yaml
	@$(PY) -m pipelines.compile $(call given,SETTINGS,settings) $(call given,OUTPUT,output)

.PHONY: submit
submit: $(RUN_READY) ## Run on a Kubeflow cluster: make submit SETTINGS=cluster.yaml FLAGS=--wait DATASET=...
	@$(PY) -m pipelines.submit $(call given,SETTINGS,settings) $(call given,HOST,host) $(call given,NAMESPACE,namespace) \
		$(call given,EXPERIMENT,experiment) $(PARAMETERS) $(FLAGS)

.PHONY: train-job
train-job: $(RUN_READY) ## Fine-tune on several machines: make train-job NODES=4 NAMESPACE=team FLAGS="-- --epochs 8"
	@$(PY) -m pipelines.train_job $(call given,NODES,nodes) $(call given,GPUS,gpus) $(call given,IMAGE,image) \
		$(call given,NAMESPACE,namespace) $(FLAGS)

.PHONY: compare compare-runs challenge
compare: $(RUN_READY) ## Measure backbones side by side: make compare BACKBONES=efficientnet_lite0,resnet50
	@$(PY) -m pipelines.run_compare $(call given,DATASET,dataset) $(call given,BACKBONES,backbones) \
		$(call given,SEED,seed) $(call given,VALIDATION_FRACTION,validation-fraction) \
		$(call given,TEST_FRACTION,test-fraction) $(call given,MIRRORS,mirrors) $(call given,CACHE,cache) \
		$(call given,RUNS,runs)

compare-runs: $(RUN_READY) ## Two runs on the same test pictures: make compare-runs RUN=runs/latest WITH=runs/other
	@$(PY) -m pipelines.compare_runs $(RUN) $(WITH)

challenge: $(RUN_READY) ## Pictures unlike the training data: make challenge DATASET=digits RUN=runs/latest
	@$(PY) -m pipelines.run_challenge $(call given,DATASET,dataset) $(call given,RUN,run) $(call given,SEED,seed) \
		$(call given,NUM_PICTURES,num-pictures)

.PHONY: attack ideal
attack: $(RUN_READY) ## Fool a run's model with one picture: make attack IMAGE=dog.jpg TARGET=cat EPSILON=4/255
	@test -n "$(IMAGE)" || { echo "error: IMAGE must name a picture: make attack IMAGE=dog.jpg TARGET=cat" >&2; exit 2; }
	@$(PY) -m pipelines.attack_picture --image '$(IMAGE)' $(call given,TARGET,target) $(call given,EPSILON,epsilon) \
		$(call given,ATTACK,attack) $(call given,STEPS,steps) $(call given,RUN,run) $(call given,SEED,seed) \
		$(call given,OUTPUT,output)

ideal: $(RUN_READY) ## What a network wants to see of a class: make ideal CLASS="Siamese cat"
	@test -n "$(CLASS)" || { echo "error: CLASS must name a class: make ideal CLASS=zebra" >&2; exit 2; }
	@$(PY) -m pipelines.draw_ideal --class '$(CLASS)' $(call given,BACKBONE,backbone) $(call given,WEIGHTS,weights) \
		$(call given,RUN,run) $(call given,SEED,seed) $(call given,STEPS,steps) $(call given,OUTPUT,output)

##@ One step alone, on the artifacts of a run (RUN=runs/latest)
STEP_TARGETS := check-settings download-data extract-features merge-features train-head fine-tune export-model evaluate \
	generate-adversarial visualise-model write-report deploy-model
.PHONY: $(STEP_TARGETS)
check-settings: ## Every setting, before any work
download-data: ## Pictures into shards: make download-data DATASET=archive:pets.zip
extract-features: ## Pictures through the backbone: make extract-features BACKBONE=vgg16
merge-features: ## The shards of features into one table (extract-features does it too)
train-head: ## A linear head on the features
fine-tune: ## The last blocks of the backbone: make fine-tune FINE_TUNE_BLOCKS=3
export-model: ## A SavedModel for TensorFlow Serving
evaluate: ## The exported model on the test pictures
generate-adversarial: ## Attacks: make generate-adversarial EPSILONS=1/255,4/255
visualise-model: ## Ideal images and feature maps: make visualise-model IDEAL_CLASSES=zebra
write-report: ## One HTML page
deploy-model: ## Into the model store: make deploy-model STORE=models
$(STEP_TARGETS): $(RUN_READY)
	@$(PY) -m pipelines.run_step $(subst -,_,$@) $(call given,RUN,run) $(PARAMETERS)

##@ The deployed model
# Labels and policies stand in the store's models.config; a store without one serves its newest version.
SERVED = $(if $(or $(wildcard $(STORE)/models.config),$(if $(wildcard $(STORE)/$(MODEL_NAME)),,none)),--model_config_file='$(STORE)/models.config' \
	--model_config_file_poll_wait_seconds=1,--model_name='$(MODEL_NAME)' --model_base_path='$(STORE)/$(MODEL_NAME)')
RELEASES = @$(PY) -m graftflow.releases

.PHONY: serve query
serve: $(RUN_READY) ## Serve the store over REST and gRPC: make serve PORT=8501 GRPC_PORT=8500 FLAGS=--enable_batching
	@$(PY) -m graftflow.serving --rest_api_port=$(PORT) --port=$(GRPC_PORT) $(SERVED) $(FLAGS)

query: $(RUN_READY) ## Ask it: make query IMAGE=cat.jpg (URL=grpc://tf-serving:8500 LABEL=canary FORMAT=csv WATCH=1)
	@test -n "$(IMAGE)" || { echo "error: IMAGE must name a picture or a folder: make query IMAGE=cat.jpg" >&2; exit 2; }
	@$(PY) -m graftflow.serving.query --url $(URL) --model $(MODEL_NAME) $(call given,LABEL,label) \
		$(call given,VERSION,version) $(call given,FORMAT,format) $(if $(WATCH),--watch) $(FLAGS) $(IMAGE)

.PHONY: releases promote rollback
releases: $(RUN_READY) ## The store's versions and their labels: make releases STORE=models
	$(RELEASES) list --store '$(STORE)' --model-name '$(MODEL_NAME)'

promote: $(RUN_READY) ## Make the canary stable
	$(RELEASES) promote --store '$(STORE)' --model-name '$(MODEL_NAME)' $(call given,VERSION,version)

rollback: $(RUN_READY) ## Make the stable version before stable again
	$(RELEASES) rollback --store '$(STORE)' --model-name '$(MODEL_NAME)'

.PHONY: lineage register
lineage: $(RUN_READY) ## Where a model comes from: make lineage MODEL=gs://bucket/models/pets/3 (or a name in STORE; FORMAT=json)
	@$(PY) -m graftflow.lineages show --store '$(STORE)' $(call given,VERSION,version) $(call given,FORMAT,format) \
		'$(or $(MODEL),$(MODEL_NAME))'

register: $(RUN_READY) ## Tell a Kubeflow Model Registry of it: make register REGISTRY=http://localhost:8080 MODEL=models/pets/3
	@test -n "$(REGISTRY)" || { echo "error: REGISTRY must be an address: make register REGISTRY=http://localhost:8080" >&2; exit 2; }
	@$(PY) -m graftflow.lineages register --store '$(STORE)' --registry '$(REGISTRY)' $(call given,VERSION,version) \
		$(call given,NAME,name) $(call given,URI,uri) $(call given,TOKEN_FILE,token-file) '$(or $(MODEL),$(MODEL_NAME))'

.PHONY: manifests
manifests: $(TEST_READY) ## Render the Kubernetes YAML into build/manifests and check it offline
	@$(PY) -m manifests.render $(OVERLAYS)

##@ Development
.PHONY: test stress fuzz test-images images lint types clean
# Two processes, whole files each: much of a server's test is waiting. ARGS="-n0" runs them in one.
test: $(TEST_READY) ## Run the tests: make test ARGS="-k attacks"
	@$(PY) -m pytest -n2 --dist=loadfile $(ARGS)

.PHONY: bench
bench: $(TEST_READY) ## Every speed beside its limit and its peers, in one table: make bench ONLY=extraction,steps
	@$(PY) -m benchmarks $(call given,ONLY,only) $(call given,OUTPUT,output) $(call given,PEERS_PYTHON,peers-python)

stress: $(TEST_READY) ## Kills, full disks, broken and hostile files, ARGS="tests/stress/test_kills.py -k fine_tune"
	@GRAFTFLOW_STRESS=1 $(PY) -m pytest $(or $(ARGS),tests/stress tests/unit/test_*_properties.py)

FUZZERS ?= archives weights answers settings
fuzz: $(TEST_READY) ## Fuzz what reads bytes of others: make fuzz FUZZERS=archives TIME=600 (Linux on x86-64)
	@test -d build/fuzz/atheris || $(PY) -m pip install --quiet --disable-pip-version-check --target build/fuzz \
		--requirement tests/stress/requirements.txt
	@PYTHONPATH=src:. $(PY) tests/stress/fuzz_seeds.py build/fuzz-corpus
	@for name in $(FUZZERS); do PYTHONPATH=build/fuzz:src:. $(PY) tests/stress/fuzz_$$name.py -max_total_time=$(or $(TIME),300) \
		-print_final_stats=1 -artifact_prefix=build/fuzz-$$name- build/fuzz-corpus/$$name || exit 1; done

test-images: $(TEST_READY) ## Build the images without a registry and run every step in them (needs root; docker/README.md)
	@GRAFTFLOW_TEST_IMAGES=1 $(PY) -m pytest tests/images $(ARGS)

images: ## Build the steps' images: make images TARGETS=cpu BASE_IMAGE=… CONTAINER_TOOL=podman REGISTRY=…
	@$(foreach name,TARGETS BASE_IMAGE CONTAINER_TOOL REGISTRY BUILD_FLAGS,$(if $($(name)),$(name)='$($(name))')) docker/build.sh

lint: $(TEST_READY) ## Check style, form and security rules
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .
	@$(PY) -m bandit --quiet --configfile pyproject.toml --recursive $(CODE)

.PHONY: audit sbom licences
audit: $(TEST_READY) ## Locks, licences, known vulnerabilities; ends with 3 where releases were not audited (FLAGS=--offline, --advisories=all.zip)
	@PYTHONPATH=docker $(PY) -m dependencies.audit $(FLAGS)

sbom: $(TEST_READY) ## Bills of material of the images, into build/sbom: make sbom BASE_IMAGE=…
	@PYTHONPATH=docker $(PY) -m dependencies.sboms $(if $(BASE_IMAGE),--base-image='$(BASE_IMAGE)')

types: $(TEST_READY) ## Check types (strict on the library)
	@$(PY) -m mypy

lock: ## Renew the lock files (needs uv) and the list of licences
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-header --quiet --upgrade -o requirements.lock
	uv pip compile --group pyproject.toml:dev -c requirements.lock --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --quiet --upgrade -o requirements-dev.lock
	uv pip compile docker/requirements-gpu.in -c requirements.lock --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --quiet --upgrade -o requirements-gpu.lock
	$(MAKE) licences

licences: $(TEST_READY) ## Look up the licence of everything that is locked and list it in docs/dependencies.md
	@PYTHONPATH=docker $(PY) -m dependencies.licences --renew $(PY)

clean: ## Remove runs, deployed models and the environment
	rm -rf runs models build $(VENV)

##@ The environment (made when first needed)
$(RUN_READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: graftflow needs Python 3.11 to 3.13. Received: $$($(PYTHON) --version 2>&1). Pass one: make run PYTHON=python3.12" >&2; exit 1; }
	@echo "Making the environment in $(VENV) (once, some minutes)"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(TEST_READY): $(RUN_READY) requirements-dev.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

.PHONY: help lock
help: ## Show this help
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-22s%s\n", $$1, $$2}' Makefile
