from data_tools.errors import refuse_idle_module

refuse_idle_module()
