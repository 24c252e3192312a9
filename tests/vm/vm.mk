# The virtual machine to test in; the project's Makefile includes this.
# tests/vm/README.md says what is in it.

VM_DIR := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))

.PHONY: vm vm-setup vm-shell vm-stop vm-check

# Quiet when nothing is missing.
vm-setup:
	@$(VM_DIR)/setup

vm: vm-setup ## build the virtual machine's image (once; cached in ~/.cache/lgss-vm)
	@$(VM_DIR)/build >/dev/null

vm-shell: vm ## a root shell in the virtual machine, which is started if need be
	@$(VM_DIR)/vm start && $(VM_DIR)/vm shell

vm-stop: ## end the virtual machine
	@$(VM_DIR)/vm stop

vm-check: vm ## install into the virtual machine and run the tests marked vm there
	@$(VM_DIR)/check
